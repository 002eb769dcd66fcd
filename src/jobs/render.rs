//! The script of a job. Every `{{ value }}` of a template is quoted for the shell unless a filter of this file has made
//! it safe, so that no template can forget it.

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior, Value, context};

use super::catalogue::Work;
use super::plan::Job;
use super::scheduler::Kind;
use super::site::Pbs;
use super::{JobError, time_limit, value};

/// All templates, by the name under which others include them.
const TEMPLATES: &[(&str, &str)] = &[
    ("jobs/script.sh.j2", include_str!("../../jobs/script.sh.j2")),
    ("jobs/functions.sh.j2", include_str!("../../jobs/functions.sh.j2")),
    ("jobs/main.sh.j2", include_str!("../../jobs/main.sh.j2")),
    ("jobs/mpirun.sh.j2", include_str!("../../jobs/mpirun.sh.j2")),
    ("jobs/measure.sh.j2", include_str!("../../jobs/measure.sh.j2")),
    ("jobs/profiler.sh.j2", include_str!("../../jobs/profiler.sh.j2")),
    ("jobs/work-train.sh.j2", include_str!("../../jobs/work-train.sh.j2")),
    ("jobs/work-verify.sh.j2", include_str!("../../jobs/work-verify.sh.j2")),
    ("jobs/work-scaling.sh.j2", include_str!("../../jobs/work-scaling.sh.j2")),
    ("jobs/work-sensitivity.sh.j2", include_str!("../../jobs/work-sensitivity.sh.j2")),
    ("jobs/work-profile-nsys.sh.j2", include_str!("../../jobs/work-profile-nsys.sh.j2")),
    ("jobs/work-profile-ncu.sh.j2", include_str!("../../jobs/work-profile-ncu.sh.j2")),
    ("jobs/local-header.sh.j2", include_str!("../../jobs/local-header.sh.j2")),
    ("jobs/local-ranks.sh.j2", include_str!("../../jobs/local-ranks.sh.j2")),
    ("slurm/header.sh.j2", include_str!("../../slurm/header.sh.j2")),
    ("slurm/ranks.sh.j2", include_str!("../../slurm/ranks.sh.j2")),
    ("pbs/common.sh.j2", include_str!("../../pbs/common.sh.j2")),
    ("pbs/torque.sh.j2", include_str!("../../pbs/torque.sh.j2")),
    ("pbs/openpbs.sh.j2", include_str!("../../pbs/openpbs.sh.j2")),
    ("pbs/ranks.sh.j2", include_str!("../../pbs/ranks.sh.j2")),
];

/// Renders a job's script.
pub fn render(job: &Job) -> Result<String, JobError> {
    render_with(job, quote)
}

/// `quote` turns text into one word of the shell.
pub(super) fn render_with(job: &Job, quote: fn(&str) -> Result<String, Error>) -> Result<String, JobError> {
    let render = || environment(quote)?.get_template("jobs/script.sh.j2")?.render(context(job));
    render().map_err(|error| JobError::new(format!("cannot render job {}: {error:#}", job.job)))
}

fn environment(quote: fn(&str) -> Result<String, Error>) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_keep_trailing_newline(true);
    environment.set_formatter(move |output, _state: &State, value| {
        let text = shell(value, quote)?;
        output.write_str(&text).map_err(Error::from)
    });
    environment.add_filter("words", move |words: Vec<Value>| -> Result<Value, Error> {
        let words: Vec<String> = words.iter().map(|word| shell(word, quote)).collect::<Result<_, _>>()?;
        Ok(Value::from_safe_string(words.join(" ")))
    });
    environment.add_filter("launcher_words", move |words: Vec<String>| -> Result<Value, Error> {
        let words: Vec<String> =
            words.iter().map(|word| launcher_word(word, quote)).collect::<Result<_, _>>()?;
        Ok(Value::from_safe_string(words.join(" ")))
    });
    environment.add_filter("directive", directive);
    for (name, source) in TEMPLATES {
        environment.add_template(name, source)?;
    }
    Ok(environment)
}

fn quote(text: &str) -> Result<String, Error> {
    let quoted =
        shlex::try_quote(text).map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))?;
    Ok(quoted.into_owned())
}

/// A value as one word of the shell.
fn shell(value: &Value, quote: fn(&str) -> Result<String, Error>) -> Result<String, Error> {
    match value.kind() {
        ValueKind::String if value.is_safe() => Ok(value.to_string()),
        ValueKind::String => quote(value.as_str().unwrap_or_default()),
        ValueKind::Number => Ok(value.to_string()),
        kind => Err(Error::new(ErrorKind::InvalidOperation, format!("a {kind} is no word of the shell"))),
    }
}

/// A word of the site's launcher, in which `{ranks}` and `{ranks_per_node}` become the script's variables.
fn launcher_word(word: &str, quote: fn(&str) -> Result<String, Error>) -> Result<String, Error> {
    let mut result = String::new();
    let mut rest = word;
    while let Some((at, name, variable)) =
        [("{ranks}", "\"$ranks\""), ("{ranks_per_node}", "\"$RANKS_PER_NODE\"")]
            .into_iter()
            .filter_map(|(name, variable)| Some((rest.find(name)?, name, variable)))
            .min()
    {
        if at > 0 {
            result += &quote(&rest[..at])?;
        }
        result += variable;
        rest = &rest[at + name.len()..];
    }
    if !rest.is_empty() || word.is_empty() {
        result += &quote(rest)?;
    }
    Ok(result)
}

/// Text for a scheduler's line, where nothing can be quoted: checked once more, whoever checked it before.
fn directive(text: &str) -> Result<Value, Error> {
    let fine = if text.starts_with('-') { value::directive("", text) } else { value::word("", text) };
    match fine {
        Ok(()) => Ok(Value::from_safe_string(text.to_owned())),
        Err(error) => Err(Error::new(ErrorKind::InvalidOperation, error.0)),
    }
}

fn context(job: &Job) -> Value {
    let site = &job.site;
    let values = &job.values;
    let inside = site.container.as_ref().map(super::site::Container::prefix).unwrap_or_default();
    let trainer = site.programs.trainer.clone().unwrap_or_else(|| match &site.container {
        Some(_) => "lockstep".into(),
        None => job.found.trainer.clone(),
    });
    let (header, ranks_template, rank_variable) = templates(job);
    // As configurations write it: 2 rather than 2.0.
    let bucket_mb: Vec<String> = values.bucket_mb.iter().flatten().map(ToString::to_string).collect();
    let directives: Vec<&String> = site.directives.iter().chain(values.directives.iter().flatten()).collect();
    let size = context! {
        nodes => job.place.nodes,
        ranks => job.place.ranks,
        ranks_per_node => job.place.ranks_per_node,
        cpus_per_rank => site.cpus_per_rank,
        gpus_per_node => site.gpus_per_node,
        memory_gb => site.memory_gb,
        time => time_limit::format(job.limit_s),
        limit_s => job.limit_s,
        grace_s => site.grace_s,
        requeues => values.requeues.unwrap_or(0),
        array => job.array,
    };
    let place = context! {
        job => job.job,
        name => job.name,
        job_dir => job.dir.to_str(),
        submit_dir => job.submit_dir.to_str(),
        account => site.account,
        queue => site.queue,
        mail_to => site.mail.as_ref().map(|mail| &mail.to),
        mail_when => site.mail.as_ref().map(|mail| mail.when.clone()).unwrap_or_default(),
        directives => directives,
        modules_init => site.modules.init,
        modules_use => site.modules.folders,
        modules_load => site.modules.load,
        env => site.env.iter().collect::<Vec<_>>(),
        threads => site.threads_per_rank.unwrap_or(1),
    };
    let work = context! {
        inside => inside,
        trainer => trainer,
        harness => site.programs.harness.as_ref().unwrap_or(&job.found.harness),
        mpirun => site.programs.mpirun.as_ref().unwrap_or(&job.found.mpirun),
        nsys => site.programs.nsys.as_deref().unwrap_or("nsys"),
        ncu => site.programs.ncu.as_deref().unwrap_or("ncu"),
        mpi => site.mpi,
        launcher => site.launcher,
        link => site.link,
        arguments => job.arguments,
        plan => values.plan.as_deref().unwrap_or(""),
        only => values.only.as_deref().unwrap_or(""),
        sizes => job.sizes,
        micro_batches_a_rank => values.micro_batches_a_rank.unwrap_or(0),
        precisions => values.precisions.clone().unwrap_or_default(),
        cells => bucket_mb.len() * values.precisions.as_ref().map_or(0, Vec::len),
        bucket_mb => bucket_mb,
        launch_skip => values.launch_skip.unwrap_or(0),
        launch_count => values.launch_count.unwrap_or(1),
    };
    let parts = context! {
        header => header,
        ranks_template => ranks_template,
        work_template => work_template(job.work),
        rank_variable => rank_variable,
        local => job.kind == Kind::Local,
        pbs => job.kind == Kind::Pbs,
    };
    context! { ..size, ..place, ..work, ..parts }
}

/// The scheduler's lines, how ranks are started, and the variable in which the launcher numbers them.
fn templates(job: &Job) -> (&'static str, &'static str, &'static str) {
    match (job.kind, job.site.pbs) {
        (Kind::Local, _) => ("jobs/local-header.sh.j2", "jobs/local-ranks.sh.j2", "OMPI_COMM_WORLD_RANK"),
        (Kind::Slurm, _) => ("slurm/header.sh.j2", "slurm/ranks.sh.j2", "SLURM_PROCID"),
        (Kind::Pbs, Pbs::Torque) => ("pbs/torque.sh.j2", "pbs/ranks.sh.j2", "OMPI_COMM_WORLD_RANK"),
        (Kind::Pbs, Pbs::OpenPbs) => ("pbs/openpbs.sh.j2", "pbs/ranks.sh.j2", "OMPI_COMM_WORLD_RANK"),
    }
}

fn work_template(work: Work) -> &'static str {
    match work {
        Work::Train => "jobs/work-train.sh.j2",
        Work::Verify => "jobs/work-verify.sh.j2",
        Work::Scaling => "jobs/work-scaling.sh.j2",
        Work::Sensitivity => "jobs/work-sensitivity.sh.j2",
        Work::ProfileNsys => "jobs/work-profile-nsys.sh.j2",
        Work::ProfileNcu => "jobs/work-profile-ncu.sh.j2",
    }
}
