//! Parameters in the order in which a model lists them.

use tch::{TchError, Tensor};

/// Hands out the parameters one after the other.
pub struct Reader<'a>(std::slice::Iter<'a, Tensor>);

impl<'a> Reader<'a> {
    pub fn new(parameters: &'a [Tensor]) -> Self {
        Self(parameters.iter())
    }

    pub fn next(&mut self) -> Result<&'a Tensor, TchError> {
        self.0.next().ok_or_else(|| TchError::Shape("fewer parameters than the model has".into()))
    }

    /// Passes over some: a part of the model that this micro-batch does not use.
    pub fn skip(&mut self, count: usize) {
        self.0.by_ref().take(count).for_each(drop);
    }
}
