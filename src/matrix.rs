//! Matrices in device memory, as views of a buffer.

use crate::Error;
use cudarc::driver::{CudaView, CudaViewMut, DeviceSlice};
use std::ops::Range;

/// A matrix [rows, columns] in device memory, row-major, over a view of a buffer.
#[derive(Debug)]
pub struct Matrix<D> {
    pub(crate) data: D,
    rows: usize,
    columns: usize,
    stride: usize,
}

/// A matrix that is only read.
pub type MatrixRef<'a, T> = Matrix<CudaView<'a, T>>;

/// A matrix that is written.
pub type MatrixMut<'a, T> = Matrix<CudaViewMut<'a, T>>;

/// Checks that a buffer of `length` holds a matrix. Kernels count rows and columns in 32 bits.
fn check(length: usize, rows: usize, columns: usize, stride: usize) -> Result<(), Error> {
    const LARGEST: usize = 1 << 30;
    let shape = || format!("[{rows}, {columns}] with a row every {stride}");
    if stride < columns {
        return Err(Error::shape("a matrix", shape(), "rows that do not overlap"));
    }
    if rows > LARGEST || stride > LARGEST {
        return Err(Error::shape("a matrix", shape(), format!("at most {LARGEST} rows and columns")));
    }
    let needed = rows.checked_sub(1).map_or(0, |last| last * stride + columns);
    if length < needed {
        return Err(Error::shape("a matrix", format!("a buffer of {length}"), format!("{needed} for {}", shape())));
    }
    Ok(())
}

impl<D> Matrix<D> {
    /// The matrix whose rows follow each other without gaps.
    ///
    /// # Errors
    /// [`Error::Shape`] if the buffer is too short.
    pub fn new<T>(data: D, rows: usize, columns: usize) -> Result<Self, Error>
    where
        D: DeviceSlice<T>,
    {
        Self::with_stride(data, rows, columns, columns)
    }

    /// The matrix with a row every `stride` elements.
    ///
    /// # Errors
    /// [`Error::Shape`] if rows overlap or the buffer is too short.
    pub fn with_stride<T>(data: D, rows: usize, columns: usize, stride: usize) -> Result<Self, Error>
    where
        D: DeviceSlice<T>,
    {
        check(data.len(), rows, columns, stride)?;
        Ok(Self { data, rows, columns, stride })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Elements from one row to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    pub(crate) fn shape(&self) -> String {
        format!("[{}, {}]", self.rows, self.columns)
    }
}

impl<T> MatrixRef<'_, T> {
    /// Some columns of all rows.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are no such columns.
    pub fn columns_at(&self, columns: Range<usize>) -> Result<MatrixRef<'_, T>, Error> {
        self.part(0..self.rows, columns)
    }

    /// Some columns of some rows.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are no such rows and columns.
    pub fn part(&self, rows: Range<usize>, columns: Range<usize>) -> Result<MatrixRef<'_, T>, Error> {
        let elements = elements(self.shape(), (self.rows, self.columns, self.stride), &rows, &columns)?;
        MatrixRef::with_stride(self.data.slice(elements), rows.len(), columns.len(), self.stride)
    }
}

impl<T> MatrixMut<'_, T> {
    /// The same matrix, to be read.
    ///
    /// # Errors
    /// None: it is a matrix already.
    pub fn as_ref(&self) -> Result<MatrixRef<'_, T>, Error> {
        MatrixRef::with_stride(self.data.slice(..), self.rows, self.columns, self.stride)
    }

    /// The first columns of all rows, to be read.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are not as many.
    pub(crate) fn leading(&self, columns: usize) -> Result<MatrixRef<'_, T>, Error> {
        let (rows, columns) = (0..self.rows, 0..columns);
        let elements = elements(self.shape(), (self.rows, self.columns, self.stride), &rows, &columns)?;
        MatrixRef::with_stride(self.data.slice(elements), self.rows, columns.len(), self.stride)
    }

    /// Some columns of all rows.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are no such columns.
    pub fn columns_at(&mut self, columns: Range<usize>) -> Result<MatrixMut<'_, T>, Error> {
        let rows = 0..self.rows;
        let elements = elements(self.shape(), (self.rows, self.columns, self.stride), &rows, &columns)?;
        MatrixMut::with_stride(self.data.slice_mut(elements), self.rows, columns.len(), self.stride)
    }
}

/// The elements from the first to the last of a part of a matrix.
fn elements(
    shape: String,
    (all_rows, all_columns, stride): (usize, usize, usize),
    rows: &Range<usize>,
    columns: &Range<usize>,
) -> Result<Range<usize>, Error> {
    if rows.start > rows.end || rows.end > all_rows || columns.start > columns.end || columns.end > all_columns {
        return Err(Error::shape(
            "a part of a matrix",
            format!("rows {rows:?}, columns {columns:?}"),
            format!("within {shape}"),
        ));
    }
    if rows.is_empty() || columns.is_empty() {
        return Ok(0..0);
    }
    Ok(rows.start * stride + columns.start..(rows.end - 1) * stride + columns.end)
}
