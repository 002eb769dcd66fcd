//! What another order of additions can do to a sum: floating-point analysis, in the notation of Higham, *Accuracy and
//! Stability of Numerical Algorithms* (2nd ed., 2002). docs/tolerance.md has the derivations.

/// Half the distance from 1 to the next number in fp32.
pub const UNIT_ROUNDOFF: f64 = f32::EPSILON as f64 / 2.0;

/// Variance of one rounding ÷ variance of one perturbation, both of numbers of the same size: a rounding is uniform over one
/// unit in the last place (1/12), a perturbation is −1, 0 or 1 with probabilities 1/4, 1/2, 1/4 (1/2).
const ROUNDING_PER_PERTURBATION: f64 = (1.0 / 12.0) / (1.0 / 2.0);

/// γₙ = n·u ÷ (1 − n·u) bounds what n roundings in a row do (lemma 3.1); infinite where it bounds nothing.
pub fn gamma(roundings: u64) -> f64 {
    let product = roundings as f64 * UNIT_ROUNDOFF;
    if product < 1.0 { product / (1.0 - product) } else { f64::INFINITY }
}

/// Levels of the ordered sum's tree over `terms` leaves.
fn levels(terms: u64) -> u64 {
    u64::from(terms.max(1).next_power_of_two().trailing_zeros())
}

/// How far the same terms, added in any order and along the tree, can be apart at most, as a multiple of Σ|terms|: a
/// sum in any order is off by at most γₙ₋₁ Σ|terms| (eq. 4.4), and along the tree by γ of its levels (eq. 4.6).
pub fn reordered_at_most(terms: u64) -> f64 {
    gamma(terms.saturating_sub(1)) + gamma(levels(terms))
}

/// The same for terms that are each moved by at most one unit in the last place of a format with so many bits of
/// fraction, and then added along the tree as before.
pub fn perturbed_at_most(terms: u64, fraction_bits: i32) -> f64 {
    let unit = f64::from(-fraction_bits).exp2();
    unit + gamma(levels(terms)) * (2.0 + unit)
}

/// R: how many times farther, in the root mean square, another order can move a sum than perturbed terms do, whatever
/// their sizes and signs.
///
/// A rounding at a node of size s is at most of the order of Σ|terms below|, whose square is at most s·Σ(terms below)². In any
/// order a term is below nodes of rising sizes, at worst 2, 3, … n; along the tree below ones of 2, 4, …. So the
/// variance of the difference is at most (Σ 2…n + Σ 2, 4, …) roundings for each term's own perturbation.
pub fn sum_factor(terms: u64) -> f64 {
    let n = terms.max(1) as f64;
    let any_order = n * (n + 1.0) / 2.0 - 1.0;
    let along_tree = 2.0 * (terms.max(1).next_power_of_two() as f64 - 1.0);
    (ROUNDING_PER_PERTURBATION * (any_order + along_tree)).sqrt().max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reproducible 64 random bits.
    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mixed = (*state ^ (*state >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed ^ (mixed >> 29)
    }

    /// As the trainer's ordered sum adds.
    fn along_tree(terms: &[f32]) -> f32 {
        match terms {
            [] => 0.0,
            [one] => *one,
            _ => {
                let half = terms.len().next_power_of_two() / 2;
                along_tree(&terms[..half]) + along_tree(&terms[half..])
            }
        }
    }

    /// Adds two terms at random until one is left: any order there is.
    fn in_some_order(mut terms: Vec<f32>, state: &mut u64) -> f32 {
        while terms.len() > 1 {
            let left = terms.swap_remove(random(state) as usize % terms.len());
            let right = random(state) as usize % terms.len();
            terms[right] += left;
        }
        terms[0]
    }

    /// As `lockstep train --perturb` moves a number that is not zero.
    fn moved(value: f32, state: &mut u64) -> f32 {
        match random(state) % 4 {
            0 => value.next_up(),
            1 => value.next_down(),
            _ => value,
        }
    }

    fn terms() -> impl Strategy<Value = Vec<f32>> {
        let term = (-1f32..1.0, -20i32..20).prop_map(|(value, exponent)| value * (exponent as f32).exp2());
        prop::collection::vec(term, 1..80)
    }

    proptest! {
        #[test]
        fn any_order_stays_within_the_bound(terms in terms(), seed: u64) {
            let mut state = seed;
            let sizes: f64 = terms.iter().map(|&term| f64::from(term).abs()).sum();
            let tree = f64::from(along_tree(&terms));
            for _ in 0..10 {
                let apart = (f64::from(in_some_order(terms.clone(), &mut state)) - tree).abs();
                prop_assert!(apart <= reordered_at_most(terms.len() as u64) * sizes, "{apart} of {sizes}");
            }
        }

        /// Doubles are as good as exact for so few terms of one size.
        #[test]
        fn a_sum_is_within_gamma_of_the_exact_one(terms in prop::collection::vec(-1f32..1.0, 1..60), seed: u64) {
            let mut state = seed;
            let exact: f64 = terms.iter().map(|&term| f64::from(term)).sum();
            let sizes: f64 = terms.iter().map(|&term| f64::from(term).abs()).sum();
            let some = f64::from(in_some_order(terms.clone(), &mut state));
            let slack = 1e-13 * sizes;
            prop_assert!((some - exact).abs() <= gamma(terms.len() as u64 - 1) * sizes + slack);
            let tree = f64::from(along_tree(&terms));
            prop_assert!((tree - exact).abs() <= gamma(levels(terms.len() as u64)) * sizes + slack);
        }

        #[test]
        fn perturbed_terms_stay_within_theirs(terms in terms(), seed: u64) {
            let mut state = seed;
            let sizes: f64 = terms.iter().map(|&term| f64::from(term).abs()).sum();
            let others: Vec<f32> = terms.iter().map(|&term| moved(term, &mut state)).collect();
            let apart = (f64::from(along_tree(&others)) - f64::from(along_tree(&terms))).abs();
            // The unit of a subnormal number is larger than its share of the number.
            let subnormal = terms.len() as f64 * f64::from(f32::from_bits(1));
            prop_assert!(apart <= perturbed_at_most(terms.len() as u64, 23) * sizes + subnormal);
        }

        /// The statement that the bound rests on, for terms of any sizes and signs, over many elements whose last digits are
        /// random: sizes and signs are the proptest's, the digits the elements'.
        #[test]
        fn another_order_moves_a_sum_no_farther_than_the_factor_says(
            sizes in prop::collection::vec((-6i32..6, any::<bool>()), 2..24), seed: u64,
        ) {
            let mut state = seed;
            let (mut reordered, mut perturbed) = (0.0, 0.0);
            for _ in 0..600 {
                let terms: Vec<f32> = sizes
                    .iter()
                    .map(|&(exponent, negative)| {
                        let digits = (random(&mut state) >> 40) as f32 / 16_777_216.0;
                        let value = (digits + 1e-3) * (exponent as f32).exp2();
                        if negative { -value } else { value }
                    })
                    .collect();
                let tree = f64::from(along_tree(&terms));
                let sequential = terms.iter().fold(0f32, |sum, term| sum + term);
                let others: Vec<f32> = terms.iter().map(|&term| moved(term, &mut state)).collect();
                reordered += (f64::from(sequential) - tree).powi(2);
                perturbed += (f64::from(along_tree(&others)) - tree).powi(2);
            }
            let ratio = (reordered / perturbed).sqrt();
            // 600 draws estimate a root mean square to a few percent, and sums that gather around a power of two are rounded a
            // little more coarsely than their terms were moved.
            let factor = sum_factor(sizes.len() as u64);
            prop_assert!(ratio <= 1.25 * factor, "{ratio} of {factor}");
        }
    }

    #[test]
    fn the_factor_grows_with_the_terms() {
        assert_eq!(sum_factor(1), 1.0);
        assert!((sum_factor(8) - (49f64 / 6.0).sqrt()).abs() < 1e-12);
        assert!(sum_factor(64) > sum_factor(8));
        assert!(gamma(1 << 40).is_infinite());
    }
}
