//! Tensor maps, for the tensor form of `cp.async.bulk`.

use super::api;
use crate::driver::error::{Code, fail, invalid};
use crate::isa::asynchronous::tensor_map::{BYTES, MAX_RANK, Swizzle, TensorMap};

/// Bytes of an element of each `CUtensorMapDataType`: u8, u16, u32, i32, u64, i64, f16, f32, f64, bf16, f32 flushed,
/// tf32, tf32 flushed.
const ELEMENTS: [usize; 13] = [1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4];

/// `rank` values of an array of C.
///
/// # Safety
/// `values` is null or points to so many.
unsafe fn array<T: Copy + Default>(values: *const T, count: usize) -> Option<[T; MAX_RANK]> {
    let mut array = [T::default(); MAX_RANK];
    if values.is_null() && count > 0 {
        return None;
    }
    for (index, value) in array.iter_mut().enumerate().take(count) {
        // SAFETY: as the caller promises.
        *value = unsafe { values.add(index).read_unaligned() };
    }
    Some(array)
}

api! {
    fn cuTensorMapEncodeTiled(
        map: *mut u8,
        data_type: u32,
        rank: u32,
        address: u64,
        dimensions: *const u64,
        strides: *const u64,
        tile: *const u32,
        element_strides: *const u32,
        interleave: u32,
        swizzle: u32,
        _promotion: u32,
        fill: u32,
    ) |_driver| {
        let rank = rank as usize;
        if map.is_null() || !(1..=MAX_RANK).contains(&rank) {
            return Err(invalid(format!("a tensor map at {map:p} of {rank} dimensions, where 1 to 5 are possible")));
        }
        let Some(&element) = ELEMENTS.get(data_type as usize) else {
            return Err(fail(Code::NOT_SUPPORTED, format!("elements of type {data_type} are not supported")));
        };
        if interleave != 0 || fill != 0 {
            let message = "interleaved tensors, and NaN for what lies outside, are not supported";
            return Err(fail(Code::NOT_SUPPORTED, message));
        }
        let swizzle = Swizzle::from_number(swizzle);
        let swizzle = swizzle.ok_or_else(|| fail(Code::NOT_SUPPORTED, "this swizzle is not supported"))?;
        // SAFETY: the caller gives arrays of `rank` numbers, of strides one less.
        let arrays = unsafe {
            (array(dimensions, rank), array(strides, rank - 1), array(tile, rank), array(element_strides, rank))
        };
        let (Some(dimensions), Some(outer), Some(tile), Some(element_strides)) = arrays else {
            return Err(invalid("an array of the tensor map is null"));
        };
        if element_strides[..rank].iter().any(|&stride| stride != 1) {
            return Err(fail(Code::NOT_SUPPORTED, "element strides other than 1 are not supported"));
        }
        let strides = std::array::from_fn(|axis| if axis == 0 { element as u64 } else { outer[axis - 1] });
        let tensor = TensorMap { address, rank, element, dimensions, strides, tile, swizzle };
        tensor.check().map_err(invalid)?;
        // SAFETY: the caller gives a CUtensorMap, 128 bytes, to be written.
        unsafe { std::ptr::copy_nonoverlapping(tensor.to_bytes().as_ptr(), map, BYTES) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_what_was_asked_for_or_refused() {
        let encode = |data_type, rank, stride: u64, element_stride: u32| {
            let mut map = [0u8; BYTES];
            let (dimensions, tile, steps) = ([64u64, 32], [16u32, 8], [element_stride; 2]);
            // SAFETY: arrays of two numbers, and a map of 128 bytes.
            let code = unsafe {
                cuTensorMapEncodeTiled(
                    map.as_mut_ptr(),
                    data_type,
                    rank,
                    4096,
                    dimensions.as_ptr(),
                    &raw const stride,
                    tile.as_ptr(),
                    steps.as_ptr(),
                    0,
                    0,
                    0,
                    0,
                )
            };
            (code, TensorMap::from_bytes(&map))
        };
        let (code, map) = encode(6, 2, 128, 1);
        let map = map.expect("a map");
        assert_eq!((code, map.element, map.rank, map.address), (0, 2, 2, 4096));
        assert_eq!(
            (&map.dimensions[..2], &map.strides[..2], &map.tile[..2]),
            (&[64, 32][..], &[2, 128][..], &[16, 8][..])
        );
        assert_ne!(encode(6, 2, 100, 1).0, 0, "a stride that is no multiple of 16");
        assert_ne!(encode(6, 6, 128, 1).0, 0);
        assert_ne!(encode(99, 2, 128, 1).0, 0);
        assert_ne!(encode(6, 2, 128, 2).0, 0);
    }
}
