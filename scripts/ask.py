#!/usr/bin/env python3
"""Ask the model that `configs/local-cpu.yaml` serves, and stream its answer."""

from __future__ import annotations

import argparse
import os
import sys
import time

import openai


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--wait-for", type=int, metavar="PID", help="wait while this server starts")
    options = parser.parse_args()
    client = openai.OpenAI(base_url=options.url, api_key="none", max_retries=0)
    while True:
        try:
            model = client.models.list().data[0].id
            break
        except openai.APIError as error:
            if options.wait_for is None:
                print(f"no model at {options.url}: {error}", file=sys.stderr)
                return 1
            try:
                os.kill(options.wait_for, 0)
            except ProcessLookupError:
                return 1  # the server has said why
            time.sleep(0.5)
    if options.wait_for is not None:
        time.sleep(1.0)  # the server's own last words come first
    print(f"\n> {options.question}", flush=True)
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": options.question}],
        max_tokens=200,
        temperature=0,
        stream=True,
    )
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            print(chunk.choices[0].delta.content, end="", flush=True)
    print("\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
