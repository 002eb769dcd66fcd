//! What wins over what, and where each value is said to come from.

use super::*;
use crate::config::show::show;
use crate::config::source::EMBEDDED;

#[test]
fn without_files_it_is_the_embedded_base() {
    let resolved = load(&[], &[], &environment).unwrap();
    assert_eq!(resolved.config.run.name, "run");
    assert_eq!(
        without_base_lines(&value(&resolved, "run.name").origin.to_string()),
        "embedded base.yaml:<line>"
    );
}

#[test]
fn lines_are_those_of_the_file() {
    let resolved = load(&[], &[], &environment).unwrap();
    let base = EMBEDDED.iter().find(|(name, _)| *name == "base.yaml").unwrap().1;
    let lines: Vec<&str> = base.lines().collect();
    for setting in &resolved.values {
        let crate::config::Origin::Embedded { line, .. } = setting.origin else { panic!("{setting:?}") };
        let name = setting.key.rsplit('.').next().unwrap();
        assert!(lines[line - 1].trim_start().starts_with(&format!("{name}:")), "{setting:?}");
    }
}

#[test]
fn later_settings_win_and_say_where_they_stand() {
    let folder = Folder::new(&[
        ("sub/a.yaml", "extends: base.yaml\noptim:\n  lr: 0.1\n  eps: 0.5\n"),
        ("b.yaml", "extends: sub/a.yaml\noptim: { lr: 0.2 }\nmodel: { layers: '${SIX}' }\n"),
    ]);
    folder.write("b.yaml", b"extends: sub/a.yaml\noptim: { lr: 0.2 }\nmodel:\n  layers: ${SIX}\n");
    let resolved = folder.load(&["b.yaml"], &["optim.eps=0.25", "optim.eps=0.125"]).unwrap();
    assert_eq!(
        (resolved.config.optim.lr, resolved.config.optim.eps, resolved.config.model.layers),
        (0.2, 0.125, 6)
    );
    let origins = ["optim.lr", "optim.eps", "model.layers", "model.heads"]
        .map(|key| value(&resolved, key).origin.to_string());
    assert_eq!(
        origins.map(|origin| without_base_lines(&folder.short(&origin))),
        ["b.yaml:2", "--set optim.eps=0.125", "b.yaml:4", "embedded base.yaml:<line>"]
    );
    assert_eq!(value(&resolved, "model.layers").variables, ["SIX"]);
}

#[test]
fn two_files_that_extend_base_do_not_undo_one_another() {
    let folder = Folder::new(&[
        ("a.yaml", "extends: base.yaml\noptim: { lr: 0.1 }\n"),
        ("b.yaml", "extends: base.yaml\nmodel: { layers: 2 }\n"),
        ("both.yaml", "extends: [a.yaml, b.yaml]\n"),
    ]);
    for files in [&["a.yaml", "b.yaml"][..], &["b.yaml", "a.yaml"], &["both.yaml"]] {
        let config = folder.load(files, &[]).unwrap().config;
        assert_eq!((config.optim.lr, config.model.layers), (0.1, 2), "{files:?}");
    }
}

#[test]
fn an_unchanged_copy_of_an_embedded_file_is_the_same_layer() {
    let base = EMBEDDED.iter().find(|(name, _)| *name == "base.yaml").unwrap().1;
    let folder = Folder::new(&[
        ("on_disk/base.yaml", base),
        ("on_disk/a.yaml", "extends: base.yaml\noptim: { lr: 0.1 }\n"),
        ("b.yaml", "extends: base.yaml\nmodel: { layers: 2 }\n"),
    ]);
    let config = folder.load(&["on_disk/a.yaml", "b.yaml"], &[]).unwrap().config;
    assert_eq!((config.optim.lr, config.model.layers), (0.1, 2));
}

#[test]
fn a_file_beside_hides_the_embedded_one_unless_that_is_asked_for() {
    let folder = Folder::new(&[
        ("base.yaml", "extends: embedded:base.yaml\nrun: { seed: 7 }\n"),
        ("a.yaml", "extends: base.yaml\n"),
        ("b.yaml", "extends: embedded:base.yaml\n"),
    ]);
    assert_eq!(folder.load(&["a.yaml"], &[]).unwrap().config.run.seed, 7);
    assert_eq!(folder.load(&["b.yaml"], &[]).unwrap().config.run.seed, 1337);
}

#[test]
fn circles_are_printed_as_a_chain() {
    let folder = Folder::new(&[
        ("a.yaml", "run: { name: a }\nextends: b.yaml\n"),
        ("b.yaml", "extends:\n  - base.yaml\n  - c.yaml\n"),
        ("c.yaml", "extends: b.yaml\n"),
        ("me.yaml", "extends: ./me.yaml\n"),
    ]);
    assert_eq!(
        folder.error(&["a.yaml"], &[]),
        "c.yaml:1: extends: these files extend one another in a circle: b.yaml:3 -> c.yaml:1 -> b.yaml; remove one of \
         these lines"
    );
    assert_eq!(
        folder.error(&["me.yaml"], &[]),
        "me.yaml:1: extends: these files extend one another in a circle: me.yaml:1 -> ./me.yaml; remove one of these \
         lines"
    );
}

#[test]
fn long_chains_and_many_files_end() {
    let names: Vec<String> = (0..40).map(|index| format!("{index}.yaml")).collect();
    let texts: Vec<String> = (1..=40).map(|next| format!("extends: {next}.yaml\n")).collect();
    let files: Vec<(&str, &str)> =
        names.iter().map(String::as_str).zip(texts.iter().map(String::as_str)).collect();
    let error = Folder::new(&files).error(&["0.yaml"], &[]);
    assert_eq!(error, "15.yaml:1: extends: more than 16 files extend one another; put some of them together");

    let list: String = (0..100).map(|index| format!("- f{index}.yaml\n")).collect();
    let folder = Folder::new(&[("all.yaml", &format!("extends:\n{list}"))]);
    (0..100).for_each(|index| folder.write(&format!("f{index}.yaml"), b"run: { seed: 1 }\n"));
    assert!(
        folder.error(&["all.yaml"], &[]).contains("extends: more than 64 files; put some of them together")
    );
}

#[test]
fn a_file_to_extend_that_is_not_there() {
    let folder =
        Folder::new(&[("a.yaml", "run: { name: a }\nextends: none.yaml\n"), ("b.yaml", "extends:\n")]);
    let error = folder.error(&["a.yaml"], &[]);
    assert!(
        error.starts_with("a.yaml:2: extends: there is no configuration file none.yaml; give "),
        "{error}"
    );
    assert_eq!(
        folder.error(&["b.yaml"], &[]),
        "b.yaml:1: extends: found no file name; give one, or delete the line"
    );
}

#[test]
fn words_that_look_like_numbers_are_names_all_the_same() {
    let config = load(&[], &["run.name=2024".into(), "run.dir=true".into()], &environment).unwrap().config;
    assert_eq!((config.run.name.as_str(), config.run.dir.to_str()), ("2024", Some("true")));
}

#[test]
fn null_takes_a_value_away() {
    assert_eq!(
        load(&[], &["optim.clip_norm=null".into()], &environment).unwrap().config.optim.clip_norm,
        None
    );
    assert_eq!(load(&[], &["optim.clip_norm=".into()], &environment).unwrap().config.optim.clip_norm, None);
}

#[test]
fn every_configuration_in_the_program_is_valid_and_is_in_the_list() {
    for (name, text) in EMBEDDED {
        let resolved = load(&[PathBuf::from(format!("embedded:{name}"))], &[], &environment).unwrap();
        resolved.validate().unwrap();
        resolved.validate_world(4).unwrap();
        assert!(text.starts_with("# "), "{name} begins with a comment that says what it is");
    }
    let mut on_disk: Vec<String> = std::fs::read_dir(repository("configs"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    on_disk.sort();
    assert_eq!(on_disk, EMBEDDED.iter().map(|(name, _)| *name).collect::<Vec<_>>());
}

#[test]
fn show_aligns_values_with_their_origins() {
    let home = |name: &str| (name == "HOME").then(|| "/home/u".to_owned());
    let resolved = load(&["embedded:tiny.yaml".into()], &["run.name='12'".into()], &home).unwrap();
    let text = without_base_lines(&show(&resolved));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), resolved.values.len());
    let find = |key: &str| {
        lines.iter().find(|line| line.starts_with(key)).unwrap().split("  ").filter(|part| !part.is_empty())
    };
    let row = |key: &str| find(key).map(str::trim).collect::<Vec<_>>();
    assert_eq!(row("run.name"), ["run.name", "\"12\"", "--set run.name='12'"]);
    assert_eq!(row("model.layers"), ["model.layers", "1", "embedded tiny.yaml:4"]);
    assert_eq!(row("optim.betas"), ["optim.betas", "[0.9, 0.95]", "embedded base.yaml:<line>"]);
    let cache = "/home/u/.cache/lockstep/tokenizers";
    assert_eq!(row("data.cache_dir"), ["data.cache_dir", cache, "embedded base.yaml:<line> with $HOME"]);
    let column = |line: &str| line.find("embedded ").or(line.find("--set "));
    assert!(lines.iter().all(|line| column(line) == column(lines[0])), "{text}");
}
