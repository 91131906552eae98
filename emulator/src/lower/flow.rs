//! Immediate post-dominators: where lanes that a branch parted come together again.

use crate::program::{Ins, NOWHERE, Op};

/// Where control may go from an instruction, as far as the graph of blocks is concerned.
pub(crate) enum Flow {
    Next,
    /// To the target, and to the next instruction if `falls`.
    To {
        targets: Vec<u32>,
        falls: bool,
    },
    End,
}

/// For every instruction that parts lanes: the first instruction that all of them must pass, or [`NOWHERE`].
pub(crate) fn joins(code: &[Ins], flow: &dyn Fn(usize) -> Flow) -> Vec<u32> {
    let length = code.len();
    // Leaders and blocks.
    let mut leader = vec![false; length + 1];
    if length > 0 {
        leader[0] = true;
    }
    for pc in 0..length {
        match flow(pc) {
            Flow::Next => {}
            Flow::To { targets, .. } => {
                targets.iter().for_each(|&t| leader[t as usize] = true);
                leader[pc + 1] = true;
            }
            Flow::End => leader[pc + 1] = true,
        }
    }
    let starts: Vec<usize> = (0..length).filter(|&pc| leader[pc]).collect();
    let block_of = |pc: usize| starts.partition_point(|&s| s <= pc) - 1;
    let blocks = starts.len();
    let exit = blocks;
    let mut successors: Vec<Vec<usize>> = vec![Vec::new(); blocks + 1];
    let mut predecessors: Vec<Vec<usize>> = vec![Vec::new(); blocks + 1];
    for (b, reaches) in successors.iter_mut().enumerate().take(blocks) {
        let last = starts.get(b + 1).copied().unwrap_or(length) - 1;
        let mut to = Vec::new();
        match flow(last) {
            Flow::Next => to.push(if last + 1 < length { b + 1 } else { exit }),
            Flow::To { targets, falls } => {
                to.extend(targets.iter().map(|&t| block_of(t as usize)));
                if falls {
                    to.push(if last + 1 < length { b + 1 } else { exit });
                }
            }
            Flow::End => to.push(exit),
        }
        // A guarded exit falls through as well.
        if matches!(flow(last), Flow::End) && code[last].guard != crate::program::NO_PREDICATE && last + 1 < length {
            to.push(b + 1);
        }
        to.sort_unstable();
        to.dedup();
        for &s in &to {
            predecessors[s].push(b);
        }
        *reaches = to;
    }
    // Post-order of the reversed graph from the exit, iteratively.
    let mut order = Vec::with_capacity(blocks + 1);
    let mut number = vec![usize::MAX; blocks + 1];
    let mut seen = vec![false; blocks + 1];
    let mut stack = vec![(exit, 0usize)];
    seen[exit] = true;
    while let Some((b, i)) = stack.pop() {
        if let Some(&p) = predecessors[b].get(i) {
            stack.push((b, i + 1));
            if !seen[p] {
                seen[p] = true;
                stack.push((p, 0));
            }
        } else {
            number[b] = order.len();
            order.push(b);
        }
    }
    // Cooper, Harvey and Kennedy's iteration.
    let mut dominator = vec![usize::MAX; blocks + 1];
    dominator[exit] = exit;
    let mut changed = true;
    while changed {
        changed = false;
        for &b in order.iter().rev().skip(1) {
            let mut new = usize::MAX;
            for &s in &successors[b] {
                if dominator[s] == usize::MAX {
                    continue;
                }
                if new == usize::MAX {
                    new = s;
                    continue;
                }
                let (mut x, mut y) = (s, new);
                while x != y {
                    while number[x] < number[y] {
                        x = dominator[x];
                    }
                    while number[y] < number[x] {
                        y = dominator[y];
                    }
                }
                new = x;
            }
            if dominator[b] != new {
                dominator[b] = new;
                changed = true;
            }
        }
    }
    (0..length)
        .map(|pc| match (&code[pc].op, flow(pc)) {
            (Op::Branch { .. } | Op::Other(_), Flow::To { .. }) => match dominator[block_of(pc)] {
                usize::MAX => NOWHERE,
                d if d == exit => NOWHERE,
                d => starts[d] as u32,
            },
            _ => NOWHERE,
        })
        .collect()
}
