//! Statements about every input.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::config::schema::{OptimKind, ScheduleKind, StrategyKind};
use crate::config::{Setting, document, merge, settings};

/// Some settings of a few keys, as a layer has them.
fn layer(name: &'static str) -> impl Strategy<Value = Vec<Setting>> {
    let key = prop::sample::select(vec!["run.seed", "model.layers", "optim.lr", "precision"]);
    prop::collection::btree_map(key, 0u64..100, 0..4).prop_map(move |values: BTreeMap<&str, u64>| {
        let origin = crate::config::Origin::Set { flag: name.into() };
        let setting = |(key, value): (&str, u64)| Setting {
            key: key.into(),
            value: value.into(),
            origin: origin.clone(),
            variables: Vec::new(),
        };
        values.into_iter().map(setting).collect()
    })
}

/// Text that is nearly a configuration: what breaks a parser is rarely random bytes.
fn nearly_yaml() -> impl Strategy<Value = String> {
    let words = [
        "run",
        "model",
        "optim",
        "lr",
        "name",
        "extends",
        "betas",
        "base.yaml",
        "1",
        "-",
        "- ",
        ": ",
        ":",
        "\n",
        "\n  ",
        "\n    ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        "&a ",
        "*a",
        "!!int ",
        "? ",
        "| ",
        ">",
        "'",
        "\"",
        "#",
        " #",
        "%",
        "@",
        "`",
        "---\n",
        "...\n",
        "${",
        "}",
        ":-",
        "$",
        "~",
        ".nan",
        "1e9",
        "\t",
        "\r\n",
        "\u{feff}",
        "é",
        "\\",
        "\0",
        "\u{85}",
        "<<: ",
        "|+2\n",
    ];
    prop::collection::vec(prop::sample::select(words.to_vec()), 0..40).prop_map(|words| words.concat())
}

fn any_config() -> impl Strategy<Value = crate::config::Config> {
    let sizes = (1usize..100, 1usize..100, any::<u64>(), any::<bool>());
    let floats =
        (prop::num::f64::POSITIVE, prop::num::f64::NORMAL, prop::option::of(prop::num::f64::POSITIVE));
    let texts = ("\\PC{0,20}", "[-a-z$ {}:#'\"~!&*|>%@`,0-9.\n\t]{0,20}", 0usize..3);
    (sizes, floats, texts).prop_map(|((layers, heads, seed, flag), (lr, decay, clip), (name, dir, kind))| {
        let mut config = load(&[], &[], &environment).unwrap().config;
        (config.model.layers, config.model.heads, config.run.seed) = (layers, heads, seed >> 1);
        // Any magnitude that the bounds allow.
        let bounded = |x: f64| if x.abs() > 1e6 { x.abs().recip() } else { x.abs() };
        (config.optim.lr, config.optim.weight_decay, config.optim.clip_norm) =
            (bounded(lr), bounded(decay), clip);
        // What the two versions of YAML disagree about is refused: see `bad_values.rs`.
        let name = name.replace(['\u{85}', '\u{2028}', '\u{2029}'], " ");
        (config.run.name, config.run.dir, config.record.local_gradients) = (name, dir.into(), flag);
        config.parallel.strategy = [StrategyKind::Single, StrategyKind::Ddp, StrategyKind::Zero1][kind];
        config.schedule.kind = [ScheduleKind::Cosine, ScheduleKind::Linear, ScheduleKind::Constant][kind];
        config.optim.kind = if flag { OptimKind::Adamw } else { OptimKind::Sgd };
        config
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn merging_is_associative(a in layer("a"), b in layer("b"), c in layer("c")) {
        let all = merge(vec![a.clone(), b.clone(), c.clone()]);
        prop_assert_eq!(&merge(vec![merge(vec![a.clone(), b.clone()]), c.clone()]), &all);
        prop_assert_eq!(&merge(vec![a, merge(vec![b, c])]), &all);
    }

    #[test]
    fn merging_a_layer_twice_changes_nothing(a in layer("a"), b in layer("b")) {
        let once = merge(vec![a, b.clone()]);
        prop_assert_eq!(merge(vec![once.clone(), b]), once.clone());
        prop_assert_eq!(merge(vec![once.clone(), once.clone()]), once);
    }

    #[test]
    fn the_last_layer_wins(a in layer("a"), b in layer("b")) {
        for setting in merge(vec![a.clone(), b.clone()]) {
            let wanted = b.iter().find(|s| s.key == setting.key).or(a.iter().find(|s| s.key == setting.key));
            prop_assert_eq!(Some(&setting), wanted);
        }
    }

    #[test]
    fn no_text_panics(text in prop_oneof![nearly_yaml(), "\\PC{0,80}", "(.|\n){0,80}"]) {
        let _ = document::parse(&text);
        let origin = crate::config::Origin::Embedded { name: "base.yaml", line: 1 };
        let _ = settings::from_file(&text, &origin, &environment);
        let _ = settings::from_flag(&text, &environment);
        let _ = settings::from_flag(&format!("optim.lr={text}"), &environment);
    }

    #[test]
    fn no_file_panics_and_each_refusal_says_what_to_do(bytes in prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        nearly_yaml().prop_map(|text| format!("extends: base.yaml\n{text}").into_bytes()),
    ]) {
        let folder = Folder::new(&[]);
        folder.write("c.yaml", &bytes);
        match folder.load(&["c.yaml"], &[]) {
            Ok(resolved) => { let _ = resolved.validate(); }
            Err(error) => {
                prop_assert!(!error.problems.is_empty());
                for problem in error.problems {
                    prop_assert!(!problem.message.is_empty() && !problem.remedy.is_empty(), "{:?}", problem);
                    prop_assert!(!problem.to_string().contains('\n'), "{:?}", problem);
                }
            }
        }
    }

    #[test]
    fn a_configuration_survives_its_own_yaml(config in any_config()) {
        let folder = Folder::new(&[("c.yaml", &config.to_yaml().unwrap())]);
        prop_assert_eq!(folder.load(&["c.yaml"], &[]).map(|resolved| resolved.config), Ok(config));
    }

    #[test]
    fn validation_never_panics(config in any_config(), ranks in 0usize..200) {
        let _ = crate::config::validate(&config);
        let _ = crate::config::validate_world(&config, ranks);
    }
}
