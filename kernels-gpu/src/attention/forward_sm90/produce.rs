//! The loading thread: hands tiles out and copies their operands by TMA.

use super::{
    super::{
        hopper::load_panels,
        mask::Mask,
        params::AttentionParams,
        schedule::{self, Tile},
    },
    shared::Shared,
};
use crate::pipeline::{Cursor, Participants};
use crate::tile::opaque::opaque;
use core::mem::offset_of;
use cuda_std::{launch::ParamAddress, tma};

/// Loads Q, K and V of all tiles of this block; K runs one tile of keys ahead of V, as the products do.
///
/// # Safety
/// - One thread calls this; the rings are initialised, `params` at `address` those of the launch.
#[inline(always)]
pub unsafe fn produce<C: Participants, const S: usize, const O: usize, const W: u32, const Q: u32, const K: u32>(
    shared: &Shared<C, S, O, W, Q, K>,
    params: &AttentionParams,
    address: ParamAddress,
) {
    // Addresses are found again from here: those that both sides use would not fit the uniform registers.
    let shared = &Shared::<C, S, O, W, Q, K>::new(opaque(shared.base));
    let q_map = address.tensor_map(offset_of!(AttentionParams, q_map));
    let k_map = address.tensor_map(offset_of!(AttentionParams, k_map));
    let v_map = address.tensor_map(offset_of!(AttentionParams, v_map));
    // SAFETY: maps of the launch.
    unsafe {
        tma::prefetch_tensormap(q_map);
        tma::prefetch_tensormap(k_map);
        tma::prefetch_tensormap(v_map);
    }
    let rows = 64 * W;
    let (mut k, mut turn) = (Cursor::<K>::start(), 0);
    // SAFETY: one thread; rings as initialised; maps of the launch. Two loops, as each has registers for itself alone.
    unsafe {
        if Shared::<C, S, O, W, Q, K>::packed(params) {
            let queue = shared.queue();
            while let Some(tile) = queue.take(params, rows) {
                k = load(shared, params, [q_map, k_map, v_map], (&tile, turn), k);
                turn += 1;
            }
        } else {
            loop {
                let index = schedule::take(params, turn);
                if index >= schedule::tiles(params) {
                    break;
                }
                let tile = Tile::at(index, params, rows);
                k = load(shared, params, [q_map, k_map, v_map], (&tile, turn), k);
                turn += 1;
            }
        }
        shared.hand_out(Cursor::nth(turn), None);
    }
}

/// Hands out the `turn`th tile and loads its operands, keys and values from cursor `k` on; returns the next one.
///
/// # Safety
/// - As for [`produce`]; the maps are those of Q, K and V.
#[inline(always)]
unsafe fn load<C: Participants, const S: usize, const O: usize, const W: u32, const Q: u32, const K: u32>(
    shared: &Shared<C, S, O, W, Q, K>,
    params: &AttentionParams,
    [q_map, k_map, v_map]: [*const u8; 3],
    (tile, turn): (&Tile, u32),
    mut k: Cursor<K>,
) -> Cursor<K> {
    let (rows, keys) = (64 * W, 2 * S as u32);
    // SAFETY: one thread; rings as initialised; boxes have the size that is expected.
    unsafe {
        shared.hand_out(Cursor::nth(turn), Some(tile));
        // Bounds are found again rather than kept in registers while the slot is waited for.
        let mask = Mask::by_flags(params, opaque(params.flags), tile.seq_q, tile.mask.seq_kv as u32);
        let (begin, end) = Tile { mask, ..*tile }.key_tiles(rows, keys);
        core::hint::assert_unchecked(params.group != 0);
        let kv_head = (tile.head / params.group) as i32;
        let sequence = if Shared::<C, S, O, W, Q, K>::packed(params) {
            0
        } else {
            tile.batch as i32
        };
        let load_k = |n: i32, k: Cursor<K>| {
            shared.k_ring().wait_empty(k);
            shared.k_ring().expect(k, Shared::<C, S, O, W, Q, K>::KV_BYTES);
            let row = tile.start_k as i32 + n * keys as i32;
            let place = [row, kv_head, sequence];
            load_panels(
                k_map,
                shared.k_stage(k),
                Shared::<C, S, O, W, Q, K>::KV_BOX,
                place,
                shared.k_ring().full(k),
            );
        };
        let load_v = |n: i32, v: Cursor<K>| {
            shared.v_ring().wait_empty(v);
            shared.v_ring().expect(v, Shared::<C, S, O, W, Q, K>::KV_BYTES);
            let row = tile.start_k as i32 + n * keys as i32;
            let place = [row, kv_head, sequence];
            load_panels(
                v_map,
                shared.v_stage(v),
                Shared::<C, S, O, W, Q, K>::KV_BOX,
                place,
                shared.v_ring().full(v),
            );
        };
        // The stage of K is free before that of Q is.
        let mut n = end - 1;
        if begin < end {
            load_k(n, k);
        }
        // Every tile has its queries, even one without keys: the ring keeps step with the tiles.
        let q = Cursor::<Q>::nth(turn);
        shared.q_ring().wait_empty(q);
        shared.q_ring().expect(q, Shared::<C, S, O, W, Q, K>::Q_BYTES);
        let row = (tile.start_q + tile.row) as i32;
        load_panels(
            q_map,
            shared.q_stage(q),
            Shared::<C, S, O, W, Q, K>::Q_BOX,
            [row, tile.head as i32, sequence],
            shared.q_ring().full(q),
        );
        if begin < end {
            k = k.next();
            while n > begin {
                load_k(n - 1, k);
                load_v(n, k.previous());
                k = k.next();
                n -= 1;
            }
            load_v(n, k.previous());
        }
        k
    }
}
