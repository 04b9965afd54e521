//! How long reading and answering took.

use serde_json::{Value, json};
use std::time::Duration;

/// Tokens and time of one kind of work.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Tokens computed.
    pub n_tokens: usize,
    /// Time it took.
    pub time: Duration,
}

impl Work {
    /// Adds some.
    pub fn add(&mut self, n_tokens: usize, time: Duration) {
        self.n_tokens += n_tokens;
        self.time += time;
    }

    fn per_second(&self) -> f64 {
        self.n_tokens as f64 / self.time.as_secs_f64().max(1e-9)
    }

    fn milliseconds(&self) -> f64 {
        self.time.as_secs_f64() * 1e3
    }
}

/// Everything that was timed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Loading the model and making room for its context.
    pub load: Duration,
    /// Reading prompts.
    pub prompt: Work,
    /// Single tokens of answers.
    pub decode: Work,
}

impl Timings {
    /// Reading and answering together.
    pub fn all(&self) -> Work {
        let (prompt, decode) = (&self.prompt, &self.decode);
        Work { n_tokens: prompt.n_tokens + decode.n_tokens, time: prompt.time + decode.time }
    }

    /// llama.cpp's lines, which scripts look for.
    pub fn lines(&self) -> String {
        let line = |name: &str, unit: &str, work: &Work| {
            let n = work.n_tokens.max(1) as f64;
            format!(
                "{name} = {:10.2} ms / {:5} {unit} ({:8.2} ms per token, {:8.2} tokens per second)\n",
                work.milliseconds(),
                work.n_tokens,
                work.milliseconds() / n,
                work.per_second(),
            )
        };
        format!("       load time = {:10.2} ms\n", self.load.as_secs_f64() * 1e3)
            + &line("prompt eval time", "tokens", &self.prompt)
            + &line("       eval time", "runs  ", &self.decode)
    }

    /// The same as llama-server names it.
    pub fn json(&self) -> Value {
        json!({
            "load_ms": self.load.as_secs_f64() * 1e3,
            "prompt_n": self.prompt.n_tokens,
            "prompt_ms": self.prompt.milliseconds(),
            "prompt_per_second": self.prompt.per_second(),
            "predicted_n": self.decode.n_tokens,
            "predicted_ms": self.decode.milliseconds(),
            "predicted_per_second": self.decode.per_second(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_have_llama_cpps_form() {
        let mut timings = Timings { load: Duration::from_millis(12), ..Timings::default() };
        timings.prompt.add(10, Duration::from_millis(200));
        timings.decode.add(1, Duration::from_millis(20));
        timings.decode.add(3, Duration::from_millis(60));
        let lines = timings.lines();
        assert!(lines.contains(
            "prompt eval time =     200.00 ms /    10 tokens (   20.00 ms per token,    50.00 tokens per second)\n"
        ));
        assert!(lines.contains(
            "       eval time =      80.00 ms /     4 runs   (   20.00 ms per token,    50.00 tokens per second)\n"
        ));
        assert_eq!(timings.json()["predicted_n"], 4);
    }
}
