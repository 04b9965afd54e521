// Answers questions about a GGUF file with a real llama.cpp.
//
//     node llama.mjs MODEL.gguf < request.json > answer.json
//
// The request is an object with any of these lists; the answer has the same lists with one result per element:
//   tokenize  {text, special}   -> [id, ...]   no BOS is added; `special` recognises control tokens in the text
//   greedy    {ids, n, top}     -> {tokens: [{id, logprob, top: [[id, logprob], ...]}, ...], stop: "eos" | "limit"}
//   follow    {ids, tokens, top} -> the same, but each next token is the given one, whatever is likeliest
// The answer also names the llama.cpp release. Log-probabilities are natural logarithms over the whole vocabulary.

import {readFileSync} from "node:fs";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const THREADS = 1; // tests run beside each other

/** The `top` likeliest continuations as [id, logprob], best first. */
function ranked({next}, top) {
    const best = [...next.logits].sort((a, b) => b[1] - a[1]).slice(0, top);
    // totalLogitWeight is the sum of exp(logit - largest logit).
    const logSum = best[0][1] + Math.log(next.totalLogitWeight);
    return best.map(([id, logit]) => [Number(id), logit - logSum]);
}

/** Evaluates ids after what the sequence holds and returns the likeliest tokens that follow. */
async function evaluate(sequence, ids, top) {
    const wanted = {generateNext: {
        token: true,
        totalLogitWeight: true,
        logits: {filter: {tokens: [], includeMax: true, includeTop: top}},
        options: {temperature: 0}
    }};
    const last = ids.length - 1;
    const results = await sequence.controlledEvaluate(ids.map((id, i) => (i < last ? id : [id, wanted])));
    return ranked(results[last], top);
}

/** Continues ids token by token, as a program that answers does; `choose(i, best)` returns the i-th token or null to stop. */
async function continued(context, ids, top, choose) {
    const sequence = context.getSequence();
    try {
        const tokens = [];
        for (let feed = ids; ; feed = [tokens.at(-1).id]) {
            const best = await evaluate(sequence, feed, top);
            const id = choose(tokens.length, best);
            if (id == null)
                return tokens;
            const logprob = best.find(([other]) => other === id)?.[1] ?? null;
            tokens.push({id, logprob, top: best});
        }
    } finally {
        await sequence.dispose();
    }
}

async function greedy(model, context, {ids, n, top}) {
    let last = null;
    const tokens = await continued(context, ids, top, (i, best) => {
        const finished = i === n || (last != null && model.isEogToken(last));
        last = best[0][0];
        return finished ? null : last;
    });
    return {tokens, stop: model.isEogToken(tokens.at(-1).id) ? "eos" : "limit"};
}

async function follow(context, {ids, tokens, top}) {
    return {tokens: await continued(context, ids, top, (i) => tokens[i])};
}

async function inTurn(items, answer) {
    const answers = [];
    for (const item of items ?? [])
        answers.push(await answer(item));
    return answers;
}

const [path] = process.argv.slice(2);
const request = JSON.parse(readFileSync(0, "utf8"));
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: THREADS});
const model = await llama.loadModel({modelPath: path, gpuLayers: 0});
const contextSize = Math.min(512, model.trainContextSize);
const context = await model.createContext({contextSize, sequences: 1, threads: THREADS});
const answer = {
    release: llama.llamaCppRelease.release,
    tokenize: await inTurn(request.tokenize, ({text, special}) => model.tokenize(text, special).map(Number)),
    greedy: await inTurn(request.greedy, (item) => greedy(model, context, item)),
    follow: await inTurn(request.follow, (item) => follow(context, item))
};
process.stdout.write(JSON.stringify(answer) + "\n");
await llama.dispose();
