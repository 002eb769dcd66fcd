//! One rank: its partial sum is the gradient, and it updates everything.

use std::ops::Range;

use super::{Setting, Strategy};
use crate::comm::{Comm, CommError};
use crate::grad::accumulate::Accumulator;
use crate::grad::flat::Flat;

pub struct Single {
    shards: Vec<Vec<Range<usize>>>,
}

impl Single {
    pub fn new(setting: &Setting) -> Self {
        Self { shards: setting.layout.shards(1) }
    }
}

impl Strategy for Single {
    fn shards(&self) -> &[Vec<Range<usize>>] {
        &self.shards
    }

    fn is_sharded(&self) -> bool {
        false
    }

    fn reduce(&mut self, _: &dyn Comm, _: &mut Accumulator) -> Result<(), CommError> {
        Ok(())
    }

    fn publish(&mut self, _: &dyn Comm, _: &mut [Flat]) -> Result<(), CommError> {
        Ok(())
    }
}
