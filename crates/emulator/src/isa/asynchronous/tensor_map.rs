//! Tensor maps: what `cuTensorMapEncodeTiled` writes for the tensor form of `cp.async.bulk`. The real layout of their
//! 128 bytes is not published; this one is our own.
//!
//! ```text
//!   0..4   "TMAP"                        16..56   dimensions, 5 × u64, innermost first
//!   4      rank, 1 to 5                  56..96   strides in bytes, 5 × u64; the first is the size of an element
//!   5      bytes of an element           96..116  box, 5 × u32
//!   6      swizzle                      116..128  zero
//!   8..16  address in global memory
//! ```

/// Bytes of a tensor map.
pub const BYTES: usize = 128;

/// The most dimensions.
pub const MAX_RANK: usize = 5;

/// How 16-byte pieces of a tile are permuted in shared memory, so that columns of it meet different banks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Swizzle {
    /// Not at all.
    #[default]
    None,
    /// Within 32 bytes.
    Bytes32,
    /// Within 64 bytes.
    Bytes64,
    /// Within 128 bytes.
    Bytes128,
}

impl Swizzle {
    /// The swizzle of this number, as in `CUtensorMapSwizzle`.
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::None, Self::Bytes32, Self::Bytes64, Self::Bytes128].get(number as usize).copied()
    }

    /// Bytes within which pieces are permuted; `None` without a swizzle.
    pub fn span(self) -> Option<usize> {
        match self {
            Self::None => None,
            Self::Bytes32 => Some(32),
            Self::Bytes64 => Some(64),
            Self::Bytes128 => Some(128),
        }
    }

    /// Where the byte at an address of shared memory goes: the number of its 16-byte piece is combined by exclusive or
    /// with that of its 128-byte line (ISA, "Tensor: swizzling modes").
    pub fn apply(self, address: u64) -> u64 {
        let pieces = match self {
            Self::None => 0,
            Self::Bytes32 => 1,
            Self::Bytes64 => 3,
            Self::Bytes128 => 7,
        };
        address ^ (address >> 7 & pieces) << 4
    }
}

/// A tensor in global memory, and the box that one copy moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Address of the first element.
    pub address: u64,
    /// How many dimensions there are; of the arrays, the others are not looked at.
    pub rank: usize,
    /// Bytes of an element: 1, 2, 4 or 8.
    pub element: usize,
    /// Elements along each dimension, the innermost one first.
    pub dimensions: [u64; MAX_RANK],
    /// Bytes from one element to the next along each dimension; along the first one that of an element.
    pub strides: [u64; MAX_RANK],
    /// Elements of the box along each dimension.
    pub tile: [u32; MAX_RANK],
    /// How it lies in shared memory.
    pub swizzle: Swizzle,
}

impl TensorMap {
    /// The bytes of this map.
    pub fn to_bytes(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..4].copy_from_slice(b"TMAP");
        bytes[4] = self.rank as u8;
        bytes[5] = self.element as u8;
        bytes[6] = self.swizzle as u8;
        bytes[8..16].copy_from_slice(&self.address.to_le_bytes());
        for axis in 0..MAX_RANK {
            bytes[16 + 8 * axis..][..8].copy_from_slice(&self.dimensions[axis].to_le_bytes());
            bytes[56 + 8 * axis..][..8].copy_from_slice(&self.strides[axis].to_le_bytes());
            bytes[96 + 4 * axis..][..4].copy_from_slice(&self.tile[axis].to_le_bytes());
        }
        bytes
    }

    /// The map in these bytes; `None` if there is none, or one that [`TensorMap::check`] refuses.
    pub fn from_bytes(bytes: &[u8; BYTES]) -> Option<Self> {
        let quad = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
        if &bytes[..4] != b"TMAP" {
            return None;
        }
        let map = Self {
            address: quad(8),
            rank: bytes[4].into(),
            element: bytes[5].into(),
            dimensions: std::array::from_fn(|axis| quad(16 + 8 * axis)),
            strides: std::array::from_fn(|axis| quad(56 + 8 * axis)),
            tile: std::array::from_fn(|axis| word(96 + 4 * axis)),
            swizzle: Swizzle::from_number(bytes[6].into())?,
        };
        map.check().is_ok().then_some(map)
    }

    /// Whether it keeps the limits of `cuTensorMapEncodeTiled`.
    ///
    /// # Errors
    /// The limit that it does not keep.
    pub fn check(&self) -> Result<(), String> {
        let refuse = |message: String| Err(message);
        if !(1..=MAX_RANK).contains(&self.rank) {
            return refuse(format!("a tensor of {} dimensions, where 1 to 5 are possible", self.rank));
        }
        if !matches!(self.element, 1 | 2 | 4 | 8) {
            return refuse(format!("elements of {} bytes", self.element));
        }
        if !self.address.is_multiple_of(16) {
            return refuse(format!("a tensor at {:#x}, which is not a multiple of 16", self.address));
        }
        for axis in 0..self.rank {
            if !(1..=1 << 32).contains(&self.dimensions[axis]) || !(1..=256).contains(&self.tile[axis]) {
                let (dimension, tile) = (self.dimensions[axis], self.tile[axis]);
                return refuse(format!("{dimension} elements in boxes of {tile} along dimension {axis}"));
            }
            if axis > 0 && (!self.strides[axis].is_multiple_of(16) || self.strides[axis] >= 1 << 40) {
                return refuse(format!("a stride of {} bytes along dimension {axis}", self.strides[axis]));
            }
        }
        let inner = self.tile[0] as usize * self.element;
        match self.swizzle.span() {
            None if !inner.is_multiple_of(16) => {
                refuse(format!("a box with rows of {inner} bytes, not a multiple of 16"))
            }
            // Narrower rows are allowed, but where they go is not published.
            Some(span) if inner != span => refuse(format!(
                "a box with rows of {inner} bytes for a swizzle of {span}; only equal ones are supported"
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_back() {
        let map = TensorMap {
            address: 0x1234_5670,
            rank: 3,
            element: 2,
            dimensions: [1 << 32, 3, 4, 0, 0],
            strides: [2, 1 << 33, 48, 0, 0],
            tile: [32, 2, 256, 0, 0],
            swizzle: Swizzle::Bytes64,
        };
        assert_eq!(TensorMap::from_bytes(&map.to_bytes()), Some(map.clone()));
        assert_eq!(TensorMap::from_bytes(&[0; BYTES]), None);
        assert!(TensorMap { rank: 6, ..map.clone() }.check().is_err());
        assert!(TensorMap { tile: [16, 2, 256, 0, 0], ..map.clone() }.check().is_err());
        assert!(TensorMap { strides: [2, 24, 48, 0, 0], ..map }.check().is_err());
    }

    /// ISA, "Tensor: swizzling modes": for 128 bytes, the pieces 0 1 2 … 7 of line 1 lie in the order 1 0 3 2 5 4 7 6;
    /// for 32 bytes, pairs of pieces change places in every other line.
    #[test]
    fn swizzles() {
        let pieces = |swizzle: Swizzle, line: u64| -> Vec<u64> {
            (0..8).map(|piece| swizzle.apply(128 * line + 16 * piece) % 128 / 16).collect()
        };
        assert_eq!(pieces(Swizzle::Bytes128, 0), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(pieces(Swizzle::Bytes128, 1), [1, 0, 3, 2, 5, 4, 7, 6]);
        assert_eq!(pieces(Swizzle::Bytes128, 6), [6, 7, 4, 5, 2, 3, 0, 1]);
        assert_eq!(pieces(Swizzle::Bytes64, 2), [2, 3, 0, 1, 6, 7, 4, 5]);
        assert_eq!(pieces(Swizzle::Bytes64, 4), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(pieces(Swizzle::Bytes32, 1), [1, 0, 3, 2, 5, 4, 7, 6]);
        assert_eq!(pieces(Swizzle::Bytes32, 2), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(Swizzle::Bytes128.apply(128 + 5), 128 + 16 + 5);
    }
}
