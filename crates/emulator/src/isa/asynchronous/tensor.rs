//! `cp.async.bulk.tensor`: copies of a box of a tensor, in tiled mode. Elements outside of the tensor are zero when
//! they are read, and not written; the bytes that an mbarrier counts are those of the whole box.

use super::bulk::{
    Moved, Transfer, destined, look_at_global, look_at_shared, read_global, read_shared, signal, without_hint,
    write_global, write_shared,
};
use super::tensor_map::{BYTES, MAX_RANK, TensorMap};
use super::{Op, Shared, check_shared, unsupported};
use crate::isa::matrix::load::addresses;
use crate::machine::Fault;
use crate::machine::context::{Context, Where};
use crate::machine::registers::{LANES, W, lanes};
use crate::program::{Address, Reason, Scope};
use crate::ptx::ast::{Instruction, Operand, Type};
use crate::report::Kind;

/// What a box in shared memory is a multiple of.
const ALIGN: u64 = 128;

/// A copy of a box.
#[derive(Clone, Debug)]
pub struct Tensor {
    map: Address,
    map_at: Where,
    coordinates: Vec<W>,
    shared: Shared,
    /// Of a copy into shared memory.
    barrier: Option<Shared>,
}

/// Decodes what follows `cp.async.bulk.tensor.`.
///
/// # Errors
/// If there is no such form, or operands do not fit it.
pub fn decode(scope: &mut Scope<'_>, modifiers: &[&str], instruction: &Instruction) -> Result<Op, Reason> {
    let (modifiers, operands) = without_hint(scope, modifiers, &instruction.operands)?;
    let Some((rank, rest)) = modifiers.split_first() else { return Err(unsupported(instruction)) };
    let rank = match *rank {
        "1d" => 1,
        "2d" => 2,
        "3d" => 3,
        "4d" => 4,
        "5d" => 5,
        _ => return Err(unsupported(instruction)),
    };
    let rest: Vec<&str> = rest.iter().copied().filter(|&modifier| modifier != "tile").collect();
    let (map, shared, barrier) = match (rest.as_slice(), operands) {
        (["shared::cluster" | "shared::cta", "global", "mbarrier::complete_tx::bytes"], [to, map, barrier]) => {
            (map, to, Some(Shared::decode(scope, barrier, true)?))
        }
        (["global", "shared::cta", "bulk_group"], [map, from]) => (map, from, None),
        _ => return Err(unsupported(instruction)),
    };
    let Operand::Tensor(map, coordinates) = map else { return Err("a tensor map was expected".to_owned()) };
    if coordinates.len() != rank {
        return Err(format!("{} coordinates of a tensor of {rank} dimensions", coordinates.len()));
    }
    let (map, space) = scope.address(map)?;
    let coordinates = coordinates.iter().map(|operand| scope.word(operand, Type::S32)).collect::<Result<_, _>>()?;
    let shared = Shared::decode(scope, shared, true)?;
    let map_at = space.map_or(Where::Generic, Where::In);
    Ok(Op::Tensor(Box::new(Tensor { map, map_at, coordinates, shared, barrier })))
}

/// A box of a tensor, and where it is in shared memory.
#[derive(Clone, Debug)]
pub(super) struct Tile {
    map: TensorMap,
    /// Of the first element; it may lie outside.
    first: [i64; MAX_RANK],
    shared: u64,
}

/// A run of elements of a box that lie in the tensor side by side.
struct Run {
    /// Where it begins in the box, in bytes.
    offset: usize,
    address: u64,
    size: usize,
}

impl Tile {
    /// Bytes of the box.
    pub(super) fn bytes(&self) -> usize {
        self.map.tile[..self.map.rank].iter().map(|&count| count as usize).product::<usize>() * self.map.element
    }

    /// The rows of the box, as far as they are in the tensor.
    fn runs(&self) -> Vec<Run> {
        let map = &self.map;
        let row = map.tile[0] as usize;
        let rows = self.bytes() / map.element / row;
        let before = (-self.first[0]).clamp(0, row as i64) as usize;
        let after = (map.dimensions[0] as i64 - self.first[0]).clamp(0, row as i64) as usize;
        let mut runs = Vec::new();
        'rows: for number in 0..rows {
            let mut rest = number;
            let mut address = map.address;
            for axis in 1..map.rank {
                let tile = map.tile[axis] as usize;
                let at = self.first[axis] + (rest % tile) as i64;
                rest /= tile;
                if !(0..map.dimensions[axis] as i64).contains(&at) {
                    continue 'rows;
                }
                address = address.wrapping_add((at as u64).wrapping_mul(map.strides[axis]));
            }
            if before < after {
                let inside = (self.first[0] + before as i64) as u64;
                runs.push(Run {
                    offset: (number * row + before) * map.element,
                    address: address.wrapping_add(inside.wrapping_mul(map.element as u64)),
                    size: (after - before) * map.element,
                });
            }
        }
        runs
    }

    /// Copies it into shared memory.
    pub(super) fn carry_in(&self, context: &mut Context<'_>) {
        let mut bytes = vec![0; self.bytes()];
        for Run { offset, address, size } in self.runs() {
            read_global(address, &mut bytes[offset..offset + size]);
        }
        context.block.land_copy(self.shared, bytes.len(), true);
        for (number, piece) in bytes.chunks(16).enumerate() {
            write_shared(context, self.map.swizzle.apply(self.shared + 16 * number as u64), piece);
        }
    }

    /// Copies it out of shared memory.
    pub(super) fn carry_out(&self, context: &mut Context<'_>, lane: usize) -> Result<(), Fault> {
        let mut bytes = vec![0; self.bytes()];
        for (number, piece) in bytes.chunks_mut(16).enumerate() {
            read_shared(context, self.map.swizzle.apply(self.shared + 16 * number as u64), piece);
        }
        context.block.land_copy(self.shared, bytes.len(), false);
        self.runs().into_iter().try_for_each(|Run { offset, address, size }| {
            write_global(context, lane, address, &bytes[offset..offset + size])
        })
    }
}

impl Tensor {
    /// Issues it.
    ///
    /// # Errors
    /// If there is no tensor map, an address is bad, or the mbarrier is none.
    pub fn execute(&self, context: &mut Context<'_>, mask: u32) -> Result<(), Fault> {
        for lane in lanes(mask) {
            let map = self.map(context, lane)?;
            let mut first = [0; MAX_RANK];
            for (first, &register) in first.iter_mut().zip(&self.coordinates) {
                *first = i64::from(context.registers.word(register)[lane] as i32);
            }
            let shared = self.shared.offsets(context, 1 << lane)?[lane];
            let tile = Tile { map, first, shared };
            // Pieces of a line stay in their line, so that a swizzled box ends where its last line does.
            let lines = tile.map.swizzle.span().map_or(1, |_| ALIGN as usize);
            let size = tile.bytes().next_multiple_of(lines);
            match &self.barrier {
                Some(barrier) => {
                    for run in tile.runs() {
                        look_at_global(context, lane, run.address, run.size)?;
                    }
                    check_shared(context, lane, shared, size, ALIGN)?;
                    destined(context, lane, shared, tile.bytes(), ALIGN)?;
                    let barrier = barrier.offsets(context, 1 << lane)?[lane];
                    signal(context, barrier, lane, Moved::TileIn(Box::new(tile)))?;
                }
                None => {
                    check_shared(context, lane, shared, size, ALIGN)?;
                    look_at_shared(context, lane, shared, tile.bytes())?;
                    let (warp, pc) = (context.first_thread / LANES, context.pc);
                    let what = Moved::TileOut(Box::new(tile));
                    context.pending.issue_bulk(warp, Transfer { lane, pc, what });
                }
            }
        }
        Ok(())
    }

    fn map(&self, context: &mut Context<'_>, lane: usize) -> Result<TensorMap, Fault> {
        const PART: usize = 32;
        let address = addresses(context.registers, &self.map)[lane];
        let mut bytes = [0; BYTES];
        for (number, part) in bytes.chunks_mut(PART).enumerate() {
            let mut at = [0; LANES];
            at[lane] = address.wrapping_add((number * PART) as u64);
            part.copy_from_slice(&context.load(1 << lane, self.map_at, &at, PART)?[lane]);
        }
        match TensorMap::from_bytes(&bytes) {
            Some(map) if map.rank == self.coordinates.len() => Ok(map),
            Some(map) => {
                let message =
                    format!("takes a tensor of {} dimensions for one of {}", map.rank, self.coordinates.len());
                Err(Fault::lane(Kind::Undefined, lane, message))
            }
            None => {
                let message = format!("takes the 128 bytes at {address:#x} for a tensor map, which they are not");
                Err(Fault::lane(Kind::Undefined, lane, message))
            }
        }
    }
}
