//! How many rows and vectors meet in registers.

/// [`crate::simd::row_block`] with a number of vectors that need not make whole panels: a chunk's operands lie side by
/// side. With fewer than nine sums a row block of AVX2 waits for its additions.
macro_rules! tile_block {
    ($s:ident, $rows:expr, $f:ident($($arg:expr),* $(,)?)) => {
        match $rows {
            3 if const { $s::LANES == 8 } => $f::<$s, 3, 3>($($arg),*),
            rows => $crate::simd::row_block!($s, rows, $f($($arg),*)),
        }
    };
}
pub(super) use tile_block;

/// Covers the vectors of a range with calls of `$f::<S, R, _>`, which are told where they begin: `$most` at a time, fewer at
/// the end.
macro_rules! cover {
    ($s:ident, $r:ident, $most:ident, $vectors:expr, $f:ident($at:ident, $($arg:expr),* $(,)?)) => {
        let (mut $at, end): (usize, usize) = $vectors;
        while $at < end {
            let left = end - $at;
            // Not three and then one alone.
            if left >= $most && (const { $most != 3 } || left != 4) {
                $f::<$s, $r, $most>($at * $s::LANES, $($arg),*);
                $at += $most;
            } else if const { $most > 4 } && left >= 4 {
                $f::<$s, $r, 4>($at * $s::LANES, $($arg),*);
                $at += 4;
            } else if const { $most > 2 } && left >= 2 {
                $f::<$s, $r, 2>($at * $s::LANES, $($arg),*);
                $at += 2;
            } else {
                $f::<$s, $r, 1>($at * $s::LANES, $($arg),*);
                $at += 1;
            }
        }
    };
}
pub(super) use cover;
