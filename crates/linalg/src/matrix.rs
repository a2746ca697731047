//! Borrowed matrices: a slice, a shape and strides.

/// A matrix that is read: element (i, j) lies at `i · row_stride + j · column_stride`.
#[derive(Clone, Copy, Debug)]
pub struct MatrixRef<'a, T = f32> {
    pub(crate) data: &'a [T],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
}

impl<'a, T> MatrixRef<'a, T> {
    /// A row-major matrix [rows, columns] without gaps.
    ///
    /// # Panics
    /// If `data` does not have `rows · columns` elements.
    pub fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        assert_eq!(data.len(), rows * columns, "a [{rows}, {columns}] matrix");
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// A row-major matrix [rows, columns] whose rows start `row_stride` elements apart.
    ///
    /// # Panics
    /// If the last element lies outside `data`.
    pub fn with_stride(data: &'a [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(rows <= 1 || row_stride >= columns, "rows of {columns} columns, {row_stride} apart, overlap");
        assert!(
            rows == 0 || columns == 0 || (rows - 1) * row_stride + columns <= data.len(),
            "a [{rows}, {columns}] matrix of row stride {row_stride} in {} elements",
            data.len()
        );
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The transposed matrix; nothing moves.
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// A row-major matrix that is written.
#[derive(Debug)]
pub struct MatrixMut<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) row_stride: usize,
}

impl<'a> MatrixMut<'a> {
    /// A row-major matrix [rows, columns] without gaps.
    ///
    /// # Panics
    /// If `data` does not have `rows · columns` elements.
    pub fn new(data: &'a mut [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(data.len(), rows * columns, "a [{rows}, {columns}] matrix");
        Self { data, rows, columns, row_stride: columns }
    }

    /// A row-major matrix [rows, columns] whose rows start `row_stride` elements apart.
    ///
    /// # Panics
    /// If rows overlap or the last element lies outside `data`.
    pub fn with_stride(data: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        MatrixRef::with_stride(data, rows, columns, row_stride);
        Self { data, rows, columns, row_stride }
    }
}
