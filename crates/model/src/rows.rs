//! Rows of a buffer changed in parallel, in safe code and without allocation.

use std::sync::Mutex;

use kvist_kernels::Pool;

/// Parts that a buffer is cut into at most.
const PARTS: usize = 64;

/// Elements below which waking other threads costs more than it saves.
const SERIAL: usize = 1 << 14;

/// Calls `each(first_row, rows)` for consecutive parts of `data`, which has `width` elements a row. What is computed
/// for a row must not depend on the part that it falls into.
pub(crate) fn for_parts<T: Send>(pool: &Pool, data: &mut [T], width: usize, each: impl Fn(usize, &mut [T]) + Sync) {
    let rows = data.len() / width;
    if rows <= 1 || pool.threads() == 1 || data.len() < SERIAL {
        return each(0, data);
    }
    let share = rows.div_ceil((4 * pool.threads()).min(PARTS));
    let mut parts = data.chunks_mut(share * width);
    let parts: [Mutex<Option<&mut [T]>>; PARTS] = std::array::from_fn(|_| Mutex::new(parts.next()));
    pool.run(rows.div_ceil(share), &|i| {
        if let Some(part) = parts[i].lock().ok().and_then(|mut part| part.take()) {
            each(i * share, part);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_once_with_its_number() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads);
            for rows in [0, 1, 2, 63, 64, 65, 1000] {
                let width = 300;
                let mut data = vec![0u32; rows * width];
                for_parts(&pool, &mut data, width, |first, part| {
                    for (i, row) in part.chunks_exact_mut(width).enumerate() {
                        row.iter_mut().for_each(|v| *v += (first + i) as u32 + 1);
                    }
                });
                assert!(data.chunks_exact(width).enumerate().all(|(i, row)| row.iter().all(|v| *v == i as u32 + 1)));
            }
        }
    }
}
