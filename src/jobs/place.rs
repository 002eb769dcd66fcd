//! How many ranks go on how many nodes: one process a GPU.

use super::JobError;

/// Beyond any machine.
const RANKS_MAX: u32 = 1 << 16;

/// What is known of the wanted size; `None` is left open.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    pub ranks: Option<u32>,
    pub nodes: Option<u32>,
    /// Of the site; 0 without GPUs.
    pub gpus_per_node: u32,
    pub ranks_per_node: Option<u32>,
}

/// A size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub ranks: u32,
    pub nodes: u32,
    /// Of the fullest node; the others have as many, or fewer.
    pub ranks_per_node: u32,
}

/// Fills in what was left open, and refuses what does not fit.
pub fn place(wanted: &Wanted) -> Result<Place, JobError> {
    let most = most_per_node(wanted)?;
    let nodes = match (wanted.nodes, wanted.ranks, most) {
        (Some(nodes), _, _) => nodes,
        (None, Some(ranks), Some(most)) => ranks.div_ceil(most),
        (None, _, _) => 1,
    };
    let ranks = wanted.ranks.unwrap_or_else(|| nodes.saturating_mul(most.unwrap_or(1)));
    if !(1..=RANKS_MAX).contains(&ranks) || !(1..=RANKS_MAX).contains(&nodes) {
        return Err(JobError::new(format!(
            "{ranks} ranks on {nodes} nodes: each must be from 1 to {RANKS_MAX}"
        )));
    }
    if nodes > ranks {
        return Err(JobError::new(format!(
            "{nodes} nodes for {ranks} ranks: some would be idle; take fewer nodes"
        )));
    }
    let ranks_per_node = ranks.div_ceil(nodes);
    match most {
        Some(most) if ranks_per_node > most => Err(JobError::new(format!(
            "{ranks} ranks on {nodes} nodes are {ranks_per_node} a node, but the site has room for {most} (gpus_per_node, \
             ranks_per_node): take {} nodes",
            ranks.div_ceil(most)
        ))),
        _ => Ok(Place { ranks, nodes, ranks_per_node }),
    }
}

/// None if the site says nothing.
fn most_per_node(wanted: &Wanted) -> Result<Option<u32>, JobError> {
    match (wanted.gpus_per_node, wanted.ranks_per_node) {
        (_, Some(0)) => Err(JobError::new("ranks_per_node: 0 ranks cannot train")),
        (0, ranks) => Ok(ranks),
        (gpus, Some(ranks)) if ranks > gpus => Err(JobError::new(format!(
            "ranks_per_node: {ranks} ranks would share {gpus} GPUs (gpus_per_node); there is one process a GPU"
        ))),
        (gpus, ranks) => Ok(Some(ranks.unwrap_or(gpus))),
    }
}

/// 1, 2, 4, ... and the largest.
pub fn powers_of_two(largest: u32) -> Vec<u32> {
    let mut sizes: Vec<u32> = std::iter::successors(Some(1_u32), |size| size.checked_mul(2))
        .take_while(|&size| size < largest)
        .collect();
    sizes.push(largest);
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wanted(ranks: Option<u32>, nodes: Option<u32>, gpus_per_node: u32) -> Result<Place, JobError> {
        place(&Wanted { ranks, nodes, gpus_per_node, ranks_per_node: None })
    }

    #[test]
    fn what_is_left_open_is_filled_in() {
        assert_eq!(wanted(None, Some(2), 4), Ok(Place { ranks: 8, nodes: 2, ranks_per_node: 4 }));
        assert_eq!(wanted(Some(6), None, 4), Ok(Place { ranks: 6, nodes: 2, ranks_per_node: 3 }));
        assert_eq!(wanted(Some(6), None, 0), Ok(Place { ranks: 6, nodes: 1, ranks_per_node: 6 }));
        assert_eq!(wanted(None, None, 0), Ok(Place { ranks: 1, nodes: 1, ranks_per_node: 1 }));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        assert!(wanted(Some(9), Some(2), 4).unwrap_err().0.contains("take 3 nodes"));
        assert!(wanted(Some(2), Some(3), 4).is_err() && wanted(Some(0), None, 4).is_err());
        assert!(wanted(None, Some(u32::MAX), 4).is_err());
        let shared = Wanted { gpus_per_node: 2, ranks_per_node: Some(4), ..Wanted::default() };
        assert!(place(&shared).is_err());
    }

    #[test]
    fn sizes_end_with_the_largest() {
        assert_eq!(powers_of_two(6), [1, 2, 4, 6]);
        assert_eq!(powers_of_two(8), [1, 2, 4, 8]);
        assert_eq!(powers_of_two(1), [1]);
    }

    proptest! {
        #[test]
        fn all_ranks_have_a_place(ranks in 1..500_u32, nodes in 1..20_u32, gpus in 0..9_u32) {
            if let Ok(place) = wanted(Some(ranks), Some(nodes), gpus) {
                prop_assert!(place.ranks_per_node * place.nodes >= ranks);
                prop_assert!(gpus == 0 || place.ranks_per_node <= gpus);
                prop_assert_eq!((place.ranks, place.nodes), (ranks, nodes));
            }
        }
    }
}
