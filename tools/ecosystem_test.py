"""Other clients against a running kvist server, unchanged: given its URL and nothing else.

usage: ecosystem_test.py KVIST_BINARY [NODE_MODULES]     needs: requirements-ecosystem.txt; NODE_MODULES has `openai`
langchain-openai, litellm, the `llm` command, and the openai package for Node. One line per check, then
"N passed, N failed"; the exit code is 1 if any failed.
"""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from client_test import Server, equal

CHECKS = []
# The embedded model looks things up in its prompt.
SYSTEM = "Register.\nred fox = 4102\nblue owl = 77"
QUESTION = "What is the code of blue owl?"
ANSWER = "77"


def check(function):
    CHECKS.append(function)
    return function


def child(command, **environment):
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120,
                          stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{command[0]}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def langchain(server, **options):
    from langchain_openai import ChatOpenAI
    return ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model="kvist", temperature=0, max_retries=0, **options)


@check
def langchain_openai_plain_and_streaming(server):
    messages = [("system", SYSTEM), ("human", QUESTION)]
    answer = langchain(server).invoke(messages)
    equal(answer.content.strip(), ANSWER)
    assert answer.usage_metadata["input_tokens"] > 0, answer.usage_metadata
    streamed = langchain(server, stream_usage=True).stream(messages)
    whole = next(streamed)
    for piece in streamed:
        whole += piece
    equal(whole.content, answer.content)
    equal(whole.usage_metadata["output_tokens"], answer.usage_metadata["output_tokens"])


@check
def langchain_openai_batch_is_shared(server):
    before = server.metric("vllm:prefix_cache_hits_total")
    answers = langchain(server, max_tokens=4).batch([[("system", SYSTEM * 8), ("human", f"{i}?")] for i in range(8)])
    equal(len(answers), 8)
    assert server.metric("vllm:prefix_cache_hits_total") > before


@check
def litellm_plain_streaming_and_text(server):
    import litellm
    where = {"api_base": f"{server.url}/v1", "api_key": "none"}
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    answer = litellm.completion(model="openai/kvist", messages=messages, temperature=0, **where)
    equal(answer.choices[0].message.content.strip(), ANSWER)
    assert answer.usage.prompt_tokens > 0
    pieces = litellm.completion(model="openai/kvist", messages=messages, temperature=0, stream=True, **where)
    equal("".join(p.choices[0].delta.content or "" for p in pieces), answer.choices[0].message.content)
    # The provider for servers that speak vLLM's dialect sends other fields.
    answer = litellm.completion(model="hosted_vllm/kvist", messages=messages, temperature=0, top_k=1, **where)
    equal(answer.choices[0].message.content.strip(), ANSWER)
    text = litellm.text_completion(model="text-completion-openai/kvist", prompt="fn main() {", max_tokens=4, **where)
    assert text.choices[0].text


@check
def llm_on_the_command_line(server):
    with tempfile.TemporaryDirectory() as home:
        Path(home, "extra-openai-models.yaml").write_text(
            f"- model_id: kvist\n  model_name: kvist\n  api_base: {server.url}/v1\n  api_key_name: kvist\n")
        command = [sys.executable, "-m", "llm", "-m", "kvist", "-o", "temperature", "0"]
        environment = {"LLM_USER_PATH": home, "LLM_KVIST_KEY": "none"}
        for stream in [["--no-stream"], []]:
            said = child([*command, *stream, "--key", "none", "-s", SYSTEM, QUESTION], **environment)
            equal(said.strip(), ANSWER)
        # The next turn of the same conversation.
        assert child([*command, "-c", "--key", "none", "And of red fox?"], **environment).strip()


@check
def openai_for_node(server):
    modules = NODE_MODULES
    if modules is None:
        print("SKIPPED openai_for_node: no Node packages were given")
        return
    script = Path(__file__).with_name("openai_node_test.mjs")
    said = child(["node", str(script), str(modules), f"{server.url}/v1"])
    equal(said.strip().splitlines()[-1], "all passed")


def main(binary, modules=None):
    global NODE_MODULES
    NODE_MODULES = modules
    server, failed = Server([binary, "serve"]), []
    try:
        for function in CHECKS:
            try:
                function(server)
                print(f"ok      {function.__name__}", flush=True)
            except Exception as error:
                failed.append(function.__name__)
                print(f"FAILED  {function.__name__}: {type(error).__name__}: {str(error)[:2000]}", flush=True)
    finally:
        server.process.terminate()
        server.process.wait()
    print(f"{len(CHECKS) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
