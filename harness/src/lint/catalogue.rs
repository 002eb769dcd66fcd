//! The list of checks: what each makes sure of, and what to do when it finds something.

use super::checks::{batches, moments, norms, numbers, replicas, run, schedule};
use super::facts::{Context, StepFacts};
use super::finding::{Looked, Severity};
use super::history::History;

/// What a check looks at.
#[derive(Clone, Copy)]
pub enum Look {
    /// A step, and the one recorded before it.
    Step(fn(&Context, Option<&StepFacts>, &StepFacts) -> Looked),
    /// The run as a whole.
    Run(fn(&Context, &History) -> Looked),
    /// The files of its checkpoints.
    Checkpoints,
}

pub struct Check {
    /// Stable: scripts may rely on it.
    pub name: &'static str,
    pub severity: Severity,
    /// What it makes sure of.
    pub about: &'static str,
    pub remedy: &'static str,
    pub look: Look,
}

use Look::{Checkpoints, Run, Step};
use Severity::{Error, Warning};

/// All checks, roughly in the order of a step's events.
pub static CATALOGUE: [Check; 25] = [
    Check {
        name: "steps",
        severity: Error,
        about: "steps follow one another, once each, in every file",
        remedy: "a resume must drop the lines after its checkpoint; a writer must record each update once",
        look: Run(run::steps),
    },
    Check {
        name: "ended",
        severity: Warning,
        about: "the run came to its end",
        remedy: "wait for it, or go on with it (lockstep train --resume auto)",
        look: Run(run::ended),
    },
    Check {
        name: "world",
        severity: Error,
        about: "the manifest lists the ranks that were at work",
        remedy: "look at how ranks are started, and whether they found each other (lockstep doctor)",
        look: Run(run::world),
    },
    Check {
        name: "batch",
        severity: Error,
        about: "micro-batches, samples, targets and epochs are as many as the configuration says",
        remedy: "look at the sampler, and at how micro-batches are shared among the ranks",
        look: Step(batches::shape),
    },
    Check {
        name: "samples",
        severity: Error,
        about: "no sample is in two micro-batches of a step, or outside the data",
        remedy: "look at the sampler's rank and number of ranks: ranks must seed their order alike, and take different parts of it",
        look: Step(batches::disjoint),
    },
    Check {
        name: "epochs",
        severity: Error,
        about: "no sample comes twice in an epoch",
        remedy: "look at the sampler's position after a resume and at the end of an epoch",
        look: Run(batches::epochs),
    },
    Check {
        name: "sample-order",
        severity: Warning,
        about: "each epoch has an order of its own",
        remedy: "tell the sampler which epoch it is in (PyTorch: DistributedSampler.set_epoch)",
        look: Run(batches::order),
    },
    Check {
        name: "dropout-masks",
        severity: Error,
        about: "no two micro-batches have the same dropout masks",
        remedy: "seed the generator of dropout by rank (after the initial weights are made), or by micro-batch",
        look: Step(batches::masks),
    },
    Check {
        name: "loss-sum",
        severity: Error,
        about: "the loss is the sum of the micro-batches' shares",
        remedy: "divide each micro-batch's loss by the targets of the global batch, once",
        look: Step(numbers::loss),
    },
    Check {
        name: "loss-terms",
        severity: Error,
        about: "the loss of a model with several is their weighted sum",
        remedy: "look at the weights that the losses are added with, and at what each is divided by: its own targets in the global \
                 batch",
        look: Step(numbers::terms),
    },
    Check {
        name: "finite",
        severity: Error,
        about: "nothing recorded is NaN or infinite",
        remedy: "look at the first finding: what comes later follows from it; lower the learning rate, or clip",
        look: Step(numbers::finite),
    },
    Check {
        name: "tensors",
        severity: Error,
        about: "a phase has every tensor of the model, in its order",
        remedy: "look at which parameters the recorder was given",
        look: Step(replicas::tensors),
    },
    Check {
        name: "ranks",
        severity: Error,
        about: "every rank recorded its copies",
        remedy: "all ranks must call the recorder; look at the world size that each of them sees",
        look: Step(replicas::coverage),
    },
    Check {
        name: "replicas",
        severity: Error,
        about: "all ranks hold the same bits",
        remedy: "look at the first phase that differs: at a reduced gradient for a missing reduction, at parameters alone for a \
                 missing broadcast or a rank whose memory is faulty",
        look: Step(replicas::agreement),
    },
    Check {
        name: "repeats",
        severity: Error,
        about: "no gradient has the bits of another micro-batch's or of the step before",
        remedy: "look for gradients that are not cleared or not computed, and for ranks that read the same data",
        look: Step(replicas::repeats),
    },
    Check {
        name: "reduction",
        severity: Error,
        about: "the reduced gradient is no longer than the local ones together",
        remedy: "look for a sum where a mean is meant, a division by the wrong number of ranks, or micro-batches that are left out",
        look: Step(norms::triangle),
    },
    Check {
        name: "gradient-norm",
        severity: Error,
        about: "the gradient's norm is that of its tensors",
        remedy: "look at which tensors and shards the norm is summed over, and whether it is reduced twice",
        look: Step(norms::gradient),
    },
    Check {
        name: "clip",
        severity: Error,
        about: "clipping scaled by what norm and limit ask for",
        remedy: "clip after the reduction and after unscaling, by the norm of the whole gradient",
        look: Step(numbers::clip),
    },
    Check {
        name: "learning-rate",
        severity: Error,
        about: "the learning rate is the schedule's",
        remedy: "move the schedule once an update, and set it to the step when resuming",
        look: Step(schedule::rate),
    },
    Check {
        name: "moments",
        severity: Error,
        about: "the optimizer's state follows from the one before and the clipped gradient",
        remedy: "look at what a resume restores, at clipping, and at which gradient the optimizer is given",
        look: Step(moments::moments),
    },
    Check {
        name: "updates",
        severity: Error,
        about: "parameters that have a gradient move",
        remedy: "look whether the optimizer holds the parameters that the model uses, and whether updated shards are sent back",
        look: Step(replicas::stale),
    },
    Check {
        name: "parameter-norm",
        severity: Error,
        about: "the parameters' norm is that of their tensors",
        remedy: "look at which tensors and shards the norm is summed over",
        look: Step(norms::parameters),
    },
    Check {
        name: "norm-scale",
        severity: Warning,
        about: "a resume with another number of ranks does not scale the gradient",
        remedy: "look for a division by the number of ranks that is missing, or is done twice",
        look: Run(norms::resume),
    },
    Check {
        name: "schedule",
        severity: Warning,
        about: "a resume goes on with the schedule",
        remedy: "save the schedule with the checkpoint, and load it",
        look: Run(schedule::resume),
    },
    Check {
        name: "checkpoints",
        severity: Error,
        about: "checkpoints hold what they say and what the run had",
        remedy: "go on from an earlier checkpoint; look at the disk, or at what writes while training goes on",
        look: Checkpoints,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_all_is_said() {
        let mut names: Vec<&str> = CATALOGUE.iter().map(|check| check.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CATALOGUE.len());
        assert!(CATALOGUE.iter().all(|check| !check.about.is_empty() && !check.remedy.is_empty()));
    }

    /// The page for users names every check.
    #[test]
    fn the_documentation_is_complete() {
        let page = include_str!("../../../docs/lint.md");
        for check in &CATALOGUE {
            assert!(page.contains(&format!("| `{}` | {} |", check.name, check.severity)), "{}", check.name);
        }
    }
}
