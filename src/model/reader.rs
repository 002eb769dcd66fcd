//! Parameters in the order in which a model lists them.

use tch::{TchError, Tensor};

use super::Weights;

/// Hands out the parameters one after the other.
pub struct Reader<'a> {
    weights: &'a dyn Weights,
    next: usize,
}

impl<'a> Reader<'a> {
    pub fn new(weights: &'a dyn Weights) -> Self {
        Self { weights, next: 0 }
    }

    pub fn next(&mut self) -> Result<&'a Tensor, TchError> {
        self.next += 1;
        self.weights.get(self.next - 1)
    }

    /// Passes over some: a part of the model that this micro-batch does not use.
    pub fn skip(&mut self, count: usize) {
        self.next += count;
    }
}
