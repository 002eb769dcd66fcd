//! The container that the ranks run in.

use super::or_ok;
use crate::doctor::catalogue::CONTAINER_IMAGE;
use crate::doctor::facts::Facts;
use crate::doctor::finding::{Finding, agreement, distinct};

pub fn check(all: &[Facts]) -> Vec<Finding> {
    let images = agreement(&CONTAINER_IMAGE, "the image", all, identity);
    or_ok(images.into_iter().collect(), || Finding::ok("container", distinct(all, describe)))
}

/// What two ranks of one image have in common.
fn identity(facts: &Facts) -> String {
    match &facts.container {
        None => "no container".into(),
        Some(container) => match (&container.digest, &container.image) {
            (Some(digest), _) => digest.clone(),
            (None, Some(image)) => format!("{} {image}", container.kind),
            (None, None) => container.kind.clone(),
        },
    }
}

fn describe(facts: &Facts) -> String {
    let Some(container) = &facts.container else { return "none".into() };
    let image = container.image.as_deref().unwrap_or("image unknown");
    let digest = container.digest.as_deref().unwrap_or("digest unknown");
    format!("{}, {image}, {digest}", container.kind)
}
