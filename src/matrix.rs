//! Matrices in device memory, as views of a buffer.

use crate::Error;
use cudarc::driver::{CudaView, CudaViewMut};

/// A matrix [rows, columns] in device memory, row-major, that is only read.
#[derive(Debug)]
pub struct MatrixRef<'a, T> {
    pub(crate) data: CudaView<'a, T>,
    rows: usize,
    columns: usize,
    stride: usize,
}

/// A matrix [rows, columns] in device memory, row-major, that is written.
#[derive(Debug)]
pub struct MatrixMut<'a, T> {
    pub(crate) data: CudaViewMut<'a, T>,
    rows: usize,
    columns: usize,
    stride: usize,
}

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

impl<'a, T> MatrixRef<'a, T> {
    /// The matrix whose rows follow each other without gaps.
    ///
    /// # Errors
    /// [`Error::Shape`] if the buffer is too short.
    pub fn new(data: CudaView<'a, T>, rows: usize, columns: usize) -> Result<Self, Error> {
        Self::with_stride(data, rows, columns, columns)
    }

    /// The matrix with a row every `stride` elements.
    ///
    /// # Errors
    /// [`Error::Shape`] if rows overlap or the buffer is too short.
    pub fn with_stride(data: CudaView<'a, T>, rows: usize, columns: usize, stride: usize) -> Result<Self, Error> {
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

impl<'a, T> MatrixMut<'a, T> {
    /// As [`MatrixRef::new`].
    ///
    /// # Errors
    /// [`Error::Shape`] if the buffer is too short.
    pub fn new(data: CudaViewMut<'a, T>, rows: usize, columns: usize) -> Result<Self, Error> {
        Self::with_stride(data, rows, columns, columns)
    }

    /// As [`MatrixRef::with_stride`].
    ///
    /// # Errors
    /// [`Error::Shape`] if rows overlap or the buffer is too short.
    pub fn with_stride(data: CudaViewMut<'a, T>, rows: usize, columns: usize, stride: usize) -> Result<Self, Error> {
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
