//! The little linear algebra that PowerSGD needs, in a fixed order of plain additions and multiplications: every rank
//! computes the same bits from the same numbers, whatever its processor or library.
//!
//! Matrices are row-major. A thin factor of rank r is r vectors back to back: the columns of P, the columns of Q.

/// Sums that a scalar product is kept in, for the compiler to use vector instructions.
const LANES: usize = 16;
/// A vector of which less than this fraction is left after the projections holds nothing but rounding errors.
const VANISHED: f64 = 1e-5;

/// `P = M·Q`.
pub fn times(matrix: &[f32], q: &[f32], p: &mut [f32], columns: usize) {
    let rows = matrix.len() / columns;
    for (index, row) in matrix.chunks_exact(columns).enumerate() {
        for (p, q) in p.chunks_exact_mut(rows).zip(q.chunks_exact(columns)) {
            p[index] = dot(row, q);
        }
    }
}

/// `Q = Mᵀ·P`.
pub fn transposed_times(matrix: &[f32], p: &[f32], q: &mut [f32], columns: usize) {
    let rows = matrix.len() / columns;
    q.fill(0.0);
    for (index, row) in matrix.chunks_exact(columns).enumerate() {
        for (p, q) in p.chunks_exact(rows).zip(q.chunks_exact_mut(columns)) {
            add_scaled(q, p[index], row);
        }
    }
}

/// `M += scale·P·Qᵀ`.
pub fn add_product(matrix: &mut [f32], scale: f32, p: &[f32], q: &[f32], columns: usize) {
    let rows = matrix.len() / columns;
    for (index, row) in matrix.chunks_exact_mut(columns).enumerate() {
        for (p, q) in p.chunks_exact(rows).zip(q.chunks_exact(columns)) {
            add_scaled(row, scale * p[index], q);
        }
    }
}

/// Makes vectors of one length orthonormal, one after the other: modified Gram–Schmidt, each projection done twice (Giraud
/// et al. 2005, "twice is enough"). One that the earlier ones span becomes zero; their indices are returned. One that is not
/// finite makes itself and all later ones NaN.
pub fn orthonormalise(vectors: &mut [f32], length: usize) -> Vec<usize> {
    let mut vanished = Vec::new();
    for index in 0..vectors.len() / length {
        let (earlier, rest) = vectors.split_at_mut(index * length);
        let vector = &mut rest[..length];
        let before = product(vector, vector).sqrt();
        for other in earlier.chunks_exact(length).chain(earlier.chunks_exact(length)) {
            let component = product(vector, other);
            vector.iter_mut().zip(other).for_each(|(value, other)| {
                *value = (f64::from(*value) - component * f64::from(*other)) as f32;
            });
        }
        let after = product(vector, vector).sqrt();
        if !before.is_finite() {
            vector.fill(f32::NAN);
        } else if after <= VANISHED * before {
            vector.fill(0.0);
            vanished.push(index);
        } else {
            vector.iter_mut().for_each(|value| *value = (f64::from(*value) / after) as f32);
        }
    }
    vanished
}

/// Scalar product in double precision.
fn product(left: &[f32], right: &[f32]) -> f64 {
    left.iter().zip(right).map(|(left, right)| f64::from(*left) * f64::from(*right)).sum()
}

/// Scalar product in single precision: interleaved sums, then those in order.
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    for (left, right) in left.chunks(LANES).zip(right.chunks(LANES)) {
        for ((sum, left), right) in sums.iter_mut().zip(left).zip(right) {
            *sum += left * right;
        }
    }
    sums.iter().sum()
}

fn add_scaled(sum: &mut [f32], scale: f32, values: &[f32]) {
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += scale * value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;
    use proptest::prelude::*;

    fn random(seed: u64, elements: usize) -> Vec<f32> {
        let mut values = vec![0.0; elements];
        Stream::power_sgd(seed, 0, 0).fill_normal(0.0, 1.0, &mut values);
        values
    }

    fn close(left: &[f32], right: &[f32], bound: f32) {
        let worst = left.iter().zip(right).map(|(l, r)| (l - r).abs()).fold(0.0, f32::max);
        assert!(worst <= bound, "{worst} apart");
    }

    #[test]
    fn small_products() {
        let matrix = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let (mut p, mut q) = ([0.0; 2], [0.0; 3]);
        times(&matrix, &[1.0, 0.0, -1.0], &mut p, 3);
        assert_eq!(p, [-2.0, -2.0]);
        transposed_times(&matrix, &[1.0, -1.0], &mut q, 3);
        assert_eq!(q, [-3.0, -3.0, -3.0]);
        let mut sum = matrix;
        add_product(&mut sum, -1.0, &[1.0, 2.0], &[1.0, 0.0, 0.5], 3);
        assert_eq!(sum, [0.0, 2.0, 2.5, 2.0, 5.0, 5.0]);
    }

    #[test]
    fn what_the_earlier_ones_span_vanishes() {
        let mut vectors = [3.0, 4.0, 0.0, 6.0, 8.0, 0.0, 1.0, 0.0, 2.0];
        assert_eq!(orthonormalise(&mut vectors, 3), [1]);
        close(&vectors[..6], &[0.6, 0.8, 0.0, 0.0, 0.0, 0.0], 1e-7);
        assert_eq!(orthonormalise(&mut [0.0; 4], 2), [0, 1]);
    }

    #[test]
    fn what_is_not_finite_is_not_hidden() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut vectors = [1.0, bad, 1.0, 1.0];
            orthonormalise(&mut vectors, 2);
            assert!(vectors.iter().all(|value| value.is_nan()), "{vectors:?}");
        }
    }

    proptest! {
        #[test]
        fn vectors_become_orthonormal(seed: u64, length in 8..80usize, count in 1..8usize) {
            let mut vectors = random(seed, length * count);
            prop_assert_eq!(orthonormalise(&mut vectors, length), Vec::<usize>::new());
            for (i, left) in vectors.chunks(length).enumerate() {
                for (j, right) in vectors.chunks(length).enumerate() {
                    let wanted = f64::from(u8::from(i == j));
                    prop_assert!((product(left, right) - wanted).abs() < 1e-6);
                }
            }
        }

        /// Projecting a matrix of rank r on r random directions of its range gives the matrix.
        #[test]
        fn a_matrix_of_low_rank_survives(
            seed: u64, rows in 8..60usize, columns in 8..60usize, rank in 1..5usize, spare in 0..3usize,
        ) {
            let (left, right) = (random(seed, rows * rank), random(seed ^ 1, columns * rank));
            let mut matrix = vec![0.0; rows * columns];
            add_product(&mut matrix, 1.0, &left, &right, columns);
            let mut q = random(seed ^ 2, columns * (rank + spare));
            let mut p = vec![0.0; rows * (rank + spare)];
            times(&matrix, &q, &mut p, columns);
            orthonormalise(&mut p, rows);
            transposed_times(&matrix, &p, &mut q, columns);
            let mut back = vec![0.0; rows * columns];
            add_product(&mut back, 1.0, &p, &q, columns);
            let size = matrix.iter().fold(0f32, |size, value| size.max(value.abs()));
            close(&back, &matrix, 1e-3 * size);
        }
    }
}
