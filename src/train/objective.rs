//! The loss that goes backward: the weighted sum of a model's losses, each the mean over its own targets.

use tch::{TchError, Tensor};

use crate::model::Term;

/// What one micro-batch's losses are divided and multiplied by. The divisors are of the global batch, so that the
/// micro-batches' shares add up to the step's loss, however many ranks there are and however targets are spread over them.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    terms: Vec<Term>,
    divisors: Vec<f64>,
}

/// One micro-batch's share of the step's loss.
pub struct Shares {
    pub total: Tensor,
    /// Of the mean of each term, before its weight.
    pub terms: Vec<f64>,
}

impl Objective {
    /// `divisors` are the targets of each term.
    pub fn new(terms: Vec<Term>, divisors: Vec<f64>) -> Self {
        debug_assert_eq!(terms.len(), divisors.len());
        Self { terms, divisors }
    }

    /// Joins a micro-batch's losses, each summed over its targets. What has no target in the whole batch is left out: its
    /// sum is zero.
    pub fn shares(&self, losses: &[Tensor]) -> Result<Shares, TchError> {
        if losses.len() != self.terms.len() {
            let message = format!("{} losses of a model that has {} terms", losses.len(), self.terms.len());
            return Err(TchError::Shape(message));
        }
        let (mut total, mut terms): (Option<Tensor>, _) = (None, Vec::new());
        for ((term, &divisor), loss) in self.terms.iter().zip(&self.divisors).zip(losses) {
            let mean = loss.f_div_scalar(divisor.max(1.0))?;
            terms.push(mean.f_double_value(&[])?);
            let weighted = if term.weight == 1.0 { mean } else { mean.f_mul_scalar(term.weight)? };
            total = Some(match total {
                None => weighted,
                Some(total) => total.f_add(&weighted)?,
            });
        }
        let total = total.ok_or_else(|| TchError::Shape("a model without a loss".into()))?;
        Ok(Shares { total, terms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition::share;
    use proptest::prelude::*;

    fn objective(weights: &[f64], divisors: &[f64]) -> Objective {
        let terms = weights.iter().map(|&weight| Term { name: "one", weight }).collect();
        Objective::new(terms, divisors.to_vec())
    }

    fn scalars(values: &[f64]) -> Vec<Tensor> {
        values.iter().map(|&value| Tensor::from(value as f32)).collect()
    }

    /// Sums and counts of two losses in one micro-batch.
    type Part = ((f64, u32), (f64, u32));

    fn column(parts: &[Part], term: usize) -> (f64, f64) {
        let pick = |part: &Part| if term == 0 { part.0 } else { part.1 };
        let sums = parts.iter().map(|part| f64::from(pick(part).0 as f32)).sum();
        (sums, parts.iter().map(|part| f64::from(pick(part).1)).sum())
    }

    fn total(objective: &Objective, parts: &[Part]) -> f64 {
        let share =
            |part: &Part| objective.shares(&scalars(&[part.0.0, part.1.0])).unwrap().total.double_value(&[]);
        parts.iter().map(share).sum()
    }

    fn parts() -> impl Strategy<Value = Vec<Part>> {
        prop::collection::vec(((0f64..50.0, 1u32..30), (0f64..50.0, 1u32..30)), 2..9)
    }

    proptest! {
        /// However the micro-batches are cut, their shares add up to the weighted means over the global batch.
        #[test]
        fn shares_add_up_to_the_means(parts in parts(), weights in (0f64..3.0, 0f64..3.0)) {
            let columns = [0, 1].map(|term| column(&parts, term));
            let objective = objective(&[weights.0, weights.1], &columns.map(|(_, count)| count));
            let expected = weights.0 * columns[0].0 / columns[0].1 + weights.1 * columns[1].0 / columns[1].1;
            prop_assert!((total(&objective, &parts) - expected).abs() < 1e-3, "not {expected}");
        }

        /// The control: dividing by what a rank has of one loss gives something else as soon as ranks have unequal shares.
        #[test]
        fn means_per_rank_are_another_loss(parts in parts(), ranks in 2usize..4) {
            prop_assume!(ranks <= parts.len());
            let whole = column(&parts, 1);
            let own: Vec<_> = (0..ranks).map(|rank| column(&parts[share(parts.len(), ranks, rank)], 1)).collect();
            let mean_of_means = own.iter().map(|(sum, count)| sum / count).sum::<f64>() / ranks as f64;
            let expected = whole.0 / whole.1;
            prop_assume!((mean_of_means - expected).abs() > 1e-2);
            let per_rank: f64 = (0..ranks).map(|rank| {
                let objective = objective(&[0.0, 1.0], &[1.0, own[rank].1 * ranks as f64]);
                total(&objective, &parts[share(parts.len(), ranks, rank)])
            }).sum();
            prop_assert!((per_rank - mean_of_means).abs() < 1e-3);
            let global = objective(&[0.0, 1.0], &[1.0, whole.1]);
            prop_assert!((total(&global, &parts) - expected).abs() < 1e-3);
        }
    }

    #[test]
    fn terms_are_recorded_before_their_weights() {
        let shares = objective(&[2.0, 0.5], &[4.0, 8.0]).shares(&scalars(&[12.0, 4.0])).unwrap();
        assert_eq!(shares.terms, [3.0, 0.5]);
        assert_eq!(shares.total.double_value(&[]), 2.0 * 3.0 + 0.5 * 0.5);
    }

    #[test]
    fn a_loss_without_targets_is_zero_and_other_counts_are_refused() {
        let shares = objective(&[1.0, 1.0], &[2.0, 0.0]).shares(&scalars(&[3.0, 0.0])).unwrap();
        assert_eq!((shares.total.double_value(&[]), shares.terms[1]), (1.5, 0.0));
        assert!(objective(&[1.0], &[2.0]).shares(&scalars(&[1.0, 1.0])).is_err());
    }
}
