#!/usr/bin/env python3
"""Write tests/golden/hf-tiny-moe.json: what Hugging Face transformers computes for models/tiny-moe.

Run it again only when the fixture must change; the tests read its output and need none of these packages:

    pip install torch transformers sentencepiece
    tools/make-hf-fixture.py tests/golden/hf-tiny-moe.json

The weights are widened to float32 and everything is computed in float32, so the numbers are the model's own and not those of a
rounding. Each prompt is continued greedily, and each position of prompt and continuation is described by its likeliest tokens, by
fixed samples over the vocabulary and by statistics over all logits.
"""

import argparse
import json
import pathlib

import sentencepiece
import torch
import transformers

MODEL = pathlib.Path(__file__).resolve().parent.parent / "models" / "tiny-moe"
PROMPTS = [
    "In the beginning God created",
    "And Moses said unto the people, Fear not:",
    "hacker: n. A person who enjoys",
    "The jargon file is a compendium of\n\nslang & lore, 1975-1996.",
]
N_GENERATED = 24
N_TOP = 8
SAMPLE_EVERY = 128  # one logit of so many is kept


def describe(logits: torch.Tensor) -> dict:
    """Return what the fixture keeps of the logits of one position."""
    top = torch.topk(logits, N_TOP)
    return {
        "top": [[int(i), round(float(v), 5)] for v, i in zip(top.values, top.indices)],
        "sample": [round(float(v), 5) for v in logits[::SAMPLE_EVERY]],
        "logsumexp": round(float(torch.logsumexp(logits.double(), 0)), 5),
        "mean": round(float(logits.double().mean()), 5),
        "deviation": round(float(logits.double().std(correction=0)), 5),
    }


def follow(model, ids: list[int]) -> tuple[list[int], torch.Tensor]:
    """Return the greedy continuation of ids, and the logits [position, vocabulary] of both together."""
    known = list(ids)
    for _ in range(N_GENERATED):
        known.append(int(model(torch.tensor([known])).logits[0, -1].argmax()))
    return known[len(ids) :], model(torch.tensor([known])).logits[0]


def main() -> None:
    """Write the fixture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, help="file to write")
    args = parser.parse_args()

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(MODEL / "tokenizer.model"))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        MODEL, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    prompts = []
    with torch.no_grad():
        for text in PROMPTS:
            ids = [pieces.bos_id(), *pieces.encode(text)]
            generated, logits = follow(model, ids)
            print(repr(text), "->", repr(pieces.decode(generated)))
            prompts.append(
                {"text": text, "ids": ids, "generated": generated, "positions": [describe(row) for row in logits]}
            )
    origin = f"transformers {transformers.__version__}, torch {torch.__version__}, float32, eager attention"
    head = json.dumps({"origin": origin, "sample_every": SAMPLE_EVERY})
    body = ",\n".join(
        '{"text": %s, "ids": %s, "generated": %s, "positions": [\n%s]}'
        % (
            json.dumps(each["text"]),
            json.dumps(each["ids"]),
            json.dumps(each["generated"]),
            ",\n".join(json.dumps(position, separators=(",", ":")) for position in each["positions"]),
        )
        for each in prompts
    )
    args.out.write_text(f'{head[:-1]}, "prompts": [\n{body}\n]}}\n')


if __name__ == "__main__":
    main()
