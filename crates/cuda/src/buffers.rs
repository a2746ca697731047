//! What a forward pass has in device memory: activations, parameters, weights.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaView};
use prune_cuda::{MatrixMut, MatrixRef};

use crate::Error;
use crate::error::shape;

/// Activations [tokens, columns], row-major without gaps.
#[derive(Debug)]
pub struct Rows<T> {
    values: CudaSlice<T>,
    tokens: usize,
    columns: usize,
}

/// The residual stream of some tokens.
pub type Stream = Rows<f32>;

/// What linear layers read.
pub type Inputs<T> = Rows<T>;

impl<T> Rows<T> {
    /// The first `tokens` · `columns` elements of a buffer.
    ///
    /// # Errors
    /// [`prune_cuda::Error::Shape`] if it is shorter.
    pub fn new(values: CudaSlice<T>, tokens: usize, columns: usize) -> Result<Self, Error> {
        check(values.len(), 0, tokens, columns)?;
        Ok(Self { values, tokens, columns })
    }

    /// How many tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Columns of each.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The buffer.
    pub fn values(&self) -> &CudaSlice<T> {
        &self.values
    }

    /// The buffer, to be written.
    pub fn values_mut(&mut self) -> &mut CudaSlice<T> {
        &mut self.values
    }

    /// The buffer, taken.
    pub fn into_values(self) -> CudaSlice<T> {
        self.values
    }

    /// As kernels read them.
    pub(crate) fn matrix(&self) -> Result<MatrixRef<'_, T>, prune_cuda::Error> {
        MatrixRef::new(self.values.as_view(), self.tokens, self.columns)
    }

    /// As kernels write them.
    pub(crate) fn matrix_mut(&mut self) -> Result<MatrixMut<'_, T>, prune_cuda::Error> {
        MatrixMut::new(self.values.as_view_mut(), self.tokens, self.columns)
    }

    /// The elements of some tokens, whose rows are said to have `columns`.
    pub(crate) fn elements(&self, columns: usize, tokens: Range<usize>) -> Result<Range<usize>, Error> {
        if columns != self.columns || tokens.start > tokens.end || tokens.end > self.tokens {
            let expected = format!("within [{}, {}]", self.tokens, self.columns);
            return Err(shape(
                "a part of the residual stream",
                format!("tokens {tokens:?} of {columns} columns"),
                expected,
            ));
        }
        Ok(tokens.start * columns..tokens.end * columns)
    }
}

/// Inputs of linear layers where they lie: some tokens of a buffer that may hold more.
#[derive(Debug)]
pub struct View<'i, T> {
    values: &'i CudaSlice<T>,
    first: usize,
    tokens: usize,
    columns: usize,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

impl<'i, T> View<'i, T> {
    /// Rows [tokens, columns] without gaps, from the element `first` of a buffer on.
    ///
    /// # Errors
    /// [`prune_cuda::Error::Shape`] if they reach beyond its end.
    pub fn new(values: &'i CudaSlice<T>, first: usize, tokens: usize, columns: usize) -> Result<Self, Error> {
        check(values.len(), first, tokens, columns)?;
        Ok(Self { values, first, tokens, columns })
    }

    pub(crate) fn of(rows: &'i Rows<T>) -> Self {
        Self { values: &rows.values, first: 0, tokens: rows.tokens, columns: rows.columns }
    }

    /// How many tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Columns of each.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The elements, all rows without gaps.
    pub fn elements(&self) -> CudaView<'i, T> {
        self.values.slice(self.first..self.first + self.tokens * self.columns)
    }
}

/// What a linear layer puts out: W·x [tokens, rows], f32, and the bias, which whoever reads it adds.
#[derive(Debug)]
pub struct Outputs {
    pub(crate) products: Rows<f32>,
    pub(crate) bias: Option<Vector>,
}

/// Parameters for the columns of activations. Clones share their memory.
#[derive(Clone, Debug)]
pub struct Vector(pub(crate) Arc<CudaSlice<f32>>);

/// The weight of a linear layer or a table of rows, [rows, columns], row-major without gaps. Clones share their memory.
#[derive(Debug)]
pub struct Weight<T> {
    values: Arc<CudaSlice<T>>,
    rows: usize,
    columns: usize,
}

impl<T> Clone for Weight<T> {
    fn clone(&self) -> Self {
        Self { values: self.values.clone(), rows: self.rows, columns: self.columns }
    }
}

impl<T> Weight<T> {
    /// The first `rows` · `columns` elements of a buffer.
    ///
    /// # Errors
    /// [`prune_cuda::Error::Shape`] if it is shorter.
    pub fn new(values: CudaSlice<T>, rows: usize, columns: usize) -> Result<Self, Error> {
        check(values.len(), 0, rows, columns)?;
        Ok(Self { values: Arc::new(values), rows, columns })
    }

    /// Outputs, or rows of the table.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs, or columns of the table.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The buffer.
    pub fn values(&self) -> &CudaSlice<T> {
        &self.values
    }

    /// The buffer, to be written in place; nothing while there are clones.
    pub fn values_mut(&mut self) -> Option<&mut CudaSlice<T>> {
        Arc::get_mut(&mut self.values)
    }

    /// As kernels read it.
    pub(crate) fn matrix(&self) -> Result<MatrixRef<'_, T>, prune_cuda::Error> {
        MatrixRef::new(self.values.as_view(), self.rows, self.columns)
    }
}

/// Checks that `rows` · `columns` elements from `first` on lie in a buffer of `length`.
fn check(length: usize, first: usize, rows: usize, columns: usize) -> Result<(), Error> {
    let end = rows.checked_mul(columns).and_then(|elements| elements.checked_add(first));
    if end.is_some_and(|end| end <= length) {
        return Ok(());
    }
    Err(shape("a buffer", format!("{length} elements"), format!("[{rows}, {columns}] from element {first} on")))
}
