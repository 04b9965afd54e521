//! `bruce-run MODEL`: an answer, a conversation, or the continuation of a text.

mod answer;
mod args;
mod chat;
mod dialogue;
mod logprobs;
mod lookup;
mod mode;
mod prompt_cache;
mod screen;
mod stop;
mod timings;

pub use args::Args;

use crate::interrupt::Stoppable;
use crate::{Ended, plan, print};
use answer::{Answer, Engine, Limits, Stop};
use anyhow::Context;
use args::{Config, Output};
use bruce::exit::{UsageError, with_hint};
use dialogue::Dialogue;
use mode::{Circumstances, Impossible, Mode};
use runtime::chat::ChatTemplate;
use runtime::sampler::Sampler;
use runtime::slots::SlotStatistics;
use runtime::tokenizer::{AddBos, Special, TokenId};
use runtime::{ExpertStaging, Model, Session, StreamStatistics};
use screen::Screen;
use serde_json::json;
use std::io::{IsTerminal, Read};
use std::sync::Arc;
use std::time::Instant;
use timings::Timings;

/// Does what the flags ask for.
///
/// # Errors
/// Where the model can't be loaded or run, or the flags make no sense.
pub fn run(args: &Args) -> Result<Ended, anyhow::Error> {
    let path = args.model.path()?;
    let mut options = args.context.options();
    if let Some(how) = args.dry_run {
        plan::show(&path, &args.load, &args.placement, &options, how)?;
        return Ok(Ended::Done);
    }
    let config = args.prompt.resolve()?;
    if config.verbose {
        ggml::set_log(|_, text| bruce::terminal::tell(bruce::terminal::neutral_text(text)));
    }
    let cache = args.prompt.cache.open()?;
    let start = Instant::now();
    let model = plan::load(&path, &args.load, &args.placement, &mut options, config.verbose)?;
    warn_of(&model);
    let template = template(&config, &model)?;
    let mode = decide(&config, template.is_some())?;
    if mode == Mode::Continue && config.system.is_some() {
        bruce::say!("warning: --system-prompt: the model has no chat template, so nobody reads it");
    }
    let mut session = Session::new(&model, &options).map_err(crate::advise)?;
    let n_ctx_seen = (!args.load.changes_rotation()).then_some(model.hparams().n_ctx_train);
    for remark in context_remarks(args.context.ctx_size, session.n_ctx(), n_ctx_seen) {
        bruce::say!("{remark}");
    }
    if let ExpertStaging::Failed(error) = session.expert_staging() {
        bruce::say!("warning: the CPU reads prompts with the experts that it has: {error}");
    }
    let sampler = sampler(args, &model, session.n_ctx())?;
    if args.context.warms_up(gains_by_empty_run(&model, mode == Mode::Converse && config.prompt.is_none())) {
        session.warm_up()?;
    }
    if config.verbose {
        describe(&model, &session, &sampler);
    }
    let timings = Timings { load: start.elapsed(), ..Timings::default() };
    let before = Before::of(&model);
    let mut engine = Engine::new(session, sampler, limits(&config), timings);
    if let Some(cache) = cache {
        engine.use_cache(cache)?;
    }
    let ended = match (mode, template) {
        (Mode::Answer, Some(template)) => answer_question(&config, &mut engine, template)?,
        (Mode::Converse, Some(template)) => {
            let mut dialogue = Dialogue::new(template, config.system.clone());
            chat::converse(&config, &mut engine, &mut dialogue)?
        }
        _ => continue_text(&config, &mut engine)?,
    };
    engine.keep_all();
    if config.timings && engine.timings().prompt.n_tokens > 0 {
        report_work(&model, &engine, before);
    }
    Ok(ended)
}

/// What is odd about the file, and what about its placement.
fn warn_of(model: &Model) {
    for warning in model.gguf().warnings().iter().chain(model.tokenizer().warnings()) {
        bruce::say!("warning: {}", bruce::terminal::neutral_line(warning));
    }
    if model.slots().is_some_and(|slots| !slots.spares_the_cpu()) {
        bruce::say!(
            "warning: slots for experts save no time here: the CPU's kernels (--kernels ggml, or for a type that bruce has \
             none for) compute every expert a token takes"
        );
    }
}

/// What experts had been asked for when the work began.
struct Before {
    slots: Option<SlotStatistics>,
    streamed: Option<StreamStatistics>,
}

impl Before {
    fn of(model: &Model) -> Before {
        Before {
            slots: model.slots().map(|slots| slots.statistics()),
            streamed: model.expert_pool().map(|pool| pool.statistics()),
        }
    }
}

/// Says how long the work took, and where it found its experts.
fn report_work(model: &Model, engine: &Engine, before: Before) {
    bruce::terminal::tell(format_args!("\n{}", engine.timings().lines()));
    if let (Some(pool), Some(before)) = (model.expert_pool(), before.streamed) {
        let (work, done) = (engine.timings().all(), pool.statistics().since(&before));
        bruce::say!("   experts streamed = {}", crate::streamed::line(&done, work.n_tokens, work.time));
    }
    if let (Some(slots), Some(before)) = (model.slots(), before.slots) {
        let done = slots.statistics().since(&before);
        bruce::say!(
            "   experts on GPUs = {:.1} % of {} taken; {} moved there, {} of them with prompts, {} copied for the others{}",
            100.0 * done.hit_rate(),
            done.hits + done.misses,
            done.promotions,
            done.harvested,
            bruce::size::bytes(done.uploaded_bytes),
            if done.failures > 0 { format!(", {} could not be read", done.failures) } else { String::new() }
        );
    }
}

/// The chat template: the user's, else the file's; none where text is to be continued.
fn template(config: &Config, model: &Model) -> Result<Option<ChatTemplate>, anyhow::Error> {
    if config.conversation == Some(false) {
        return Ok(None);
    }
    match &config.template {
        Some(given) => match ChatTemplate::from_argument(given, model.tokenizer()) {
            Ok(template) => Ok(Some(template)),
            Err(error) => Err(UsageError(error.to_string()).into()),
        },
        None => ChatTemplate::from_metadata(model.gguf().metadata(), model.tokenizer()).map_err(|error| {
            let error = anyhow::Error::new(error).context(model.gguf().path().display().to_string());
            with_hint(error, "use another template with --chat-template, or continue text with -no-cnv")
        }),
    }
}

fn decide(config: &Config, has_template: bool) -> Result<Mode, anyhow::Error> {
    let circumstances = Circumstances {
        conversation: config.conversation,
        single_turn: config.single_turn,
        has_prompt: config.prompt.is_some(),
        has_template,
        stdin_is_terminal: std::io::stdin().is_terminal(),
    };
    mode::choose(circumstances).map_err(|reason| match reason {
        Impossible::NoTemplate => with_hint(
            UsageError("a conversation needs a chat template, and the model has none".to_owned()),
            "give one with --chat-template-file, or continue a text with -no-cnv",
        ),
        Impossible::NoPrompt => with_hint(
            UsageError("there is nothing to continue".to_owned()),
            "give a text with -p TEXT or -f FILE, or through a pipe",
        ),
    })
}

/// What is worth knowing about a context that was asked for, where there is one: that it got more tokens, and that the model
/// has never seen texts of such length (`n_ctx_seen`; `None` where that does not count).
fn context_remarks(asked: Option<u32>, n_ctx: usize, n_ctx_seen: Option<u32>) -> Vec<String> {
    let mut remarks = Vec::new();
    let Some(asked) = asked.filter(|asked| *asked > 0) else { return remarks };
    if asked as usize != n_ctx {
        remarks.push(format!(
            "note: -c {asked}: the context has {n_ctx} tokens, as its size is a multiple of 256"
        ));
    }
    if let Some(seen) = n_ctx_seen.filter(|seen| asked > *seen) {
        remarks.push(format!(
            "warning: -c {asked}: the model was trained with {seen} tokens; what it says beyond may make no sense"
        ));
    }
    remarks
}

fn sampler(args: &Args, model: &Arc<Model>, n_ctx: usize) -> Result<Sampler, anyhow::Error> {
    let mut params = args.sampling.params(n_ctx as u32)?;
    if args.sampling.ignore_eos {
        let ends = model.tokenizer().end_of_generation();
        params.logit_bias.extend(ends.iter().map(|id| (*id, f32::NEG_INFINITY)));
    }
    let sampler = Sampler::new(params, model.hparams().n_vocab as usize);
    sampler.map_err(|e| UsageError(e.to_string()).into())
}

fn limits(config: &Config) -> Limits {
    Limits {
        n_predict: config.n_predict,
        stop_words: config.stop_words.clone(),
        context_shift: config.context_shift,
        n_keep: config.n_keep,
        n_logprobs: (config.output == Output::Json).then_some(config.n_logprobs).filter(|n| *n > 0),
        show_control: config.show_control,
        n_draft: config.n_draft,
    }
}

/// Whether an empty run first spares anybody time: GPUs load their kernels in it, and who types the first question waits for
/// nothing meanwhile. Otherwise the prompt finds its weights faster than a single token, whose way through the file is
/// another; one through streamed experts would read gigabytes for nothing.
fn gains_by_empty_run(model: &Model, is_typing: bool) -> bool {
    model.expert_pool().is_none() && (is_typing || !model.placement().devices().is_empty())
}

/// Where the weights are and what else takes memory, on stderr.
fn describe(model: &Model, session: &Session, sampler: &Sampler) {
    use bruce::size::bytes;
    bruce::say!("{}", bruce::terminal::neutral_line(&model.description()));
    for (buffer, size) in model.sizes() {
        bruce::say!("weights in {buffer}: {}", bytes(size));
    }
    if let Some(pool) = model.expert_pool() {
        bruce::say!("experts are read by {}", pool.readers());
    }
    if let Some(slots) = model.slots() {
        bruce::say!("{} slots for experts in {} layers", slots.n_slots(), slots.experts().len());
    }
    for (buffer, size) in session.compute_bytes() {
        bruce::say!("compute buffers in {buffer}: {}", bytes(size as u64));
    }
    bruce::say!(
        "context of {} tokens, {} threads, seed {}",
        session.n_ctx(),
        session.n_threads(),
        sampler.seed()
    );
}

/// The prompt as the one question of a conversation.
fn answer_question(
    config: &Config,
    engine: &mut Engine,
    template: ChatTemplate,
) -> Result<Ended, anyhow::Error> {
    let question = prompt(config)?;
    let mut dialogue = Dialogue::new(template, config.system.clone());
    dialogue.ask(&question)?;
    let ids = dialogue.prompt(engine.session().model().tokenizer());
    answer_once(config, engine, &ids, "")
}

/// The prompt given, or all of stdin.
fn prompt(config: &Config) -> Result<String, anyhow::Error> {
    config.prompt.clone().map_or_else(stdin_text, Ok)
}

fn continue_text(config: &Config, engine: &mut Engine) -> Result<Ended, anyhow::Error> {
    let prompt = prompt(config)?;
    let tokenizer = engine.session().model().tokenizer();
    let special = if config.parse_special { Special::Parse } else { Special::Literal };
    let mut ids = tokenizer.encode(&prompt, special, AddBos::Auto);
    if ids.is_empty() {
        ids.extend(tokenizer.bos());
    }
    let shown = if config.show_prompt { prompt.as_str() } else { "" };
    answer_once(config, engine, &ids, shown)
}

/// One answer to stdout, in the form asked for.
fn answer_once(
    config: &Config,
    engine: &mut Engine,
    ids: &[TokenId],
    before: &str,
) -> Result<Ended, anyhow::Error> {
    engine.check_prompt(ids)?;
    let stoppable = Stoppable::new(&engine.session().stop_flag());
    let answer = match config.output {
        Output::Json => engine.answer(ids, &mut |_| Ok(()))?,
        Output::Text => {
            let mut screen = Screen::new();
            screen.show(before)?;
            let answer = engine.answer(ids, &mut |text| screen.show(text))?;
            screen.end_line()?;
            answer
        }
    };
    drop(stoppable);
    if config.output == Output::Json {
        print(&report(ids, &answer, engine))?;
    }
    say_why(answer.stop, engine);
    Ok(if answer.stop == Stop::Interrupted { Ended::Interrupted } else { Ended::Done })
}

/// The answer as one JSON object.
fn report(prompt: &[TokenId], answer: &Answer, engine: &Engine) -> String {
    let tokenizer = engine.session().model().tokenizer();
    let tokens: Vec<_> = answer
        .tokens
        .iter()
        .map(|chosen| {
            let text = String::from_utf8_lossy(tokenizer.token_bytes(chosen.id)).into_owned();
            match &chosen.logprobs {
                None => json!({"id": chosen.id, "text": text}),
                Some(l) => json!({"id": chosen.id, "text": text, "logprob": l.chosen, "top": l.top_json()}),
            }
        })
        .collect();
    let object = json!({
        "prompt_tokens": prompt,
        "text": answer.text,
        "tokens": tokens,
        "stop": answer.stop.name(),
        "timings": engine.timings().json(),
    });
    format!("{object}\n")
}

/// What the reader of an answer that ends early should know.
fn say_why(stop: Stop, engine: &Engine) {
    if stop == Stop::Context {
        let n_ctx = engine.session().n_ctx();
        bruce::say!(
            "the context of {n_ctx} tokens is full: the answer ends here (see -c and --context-shift)"
        );
    }
}

/// Everything that stdin has, without the line end it ends with.
fn stdin_text() -> Result<String, anyhow::Error> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("stdin: cannot read")?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}
