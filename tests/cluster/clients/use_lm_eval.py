"""lm-eval's ways to a server, held against its own transformers backend on the same checkpoint.

`python use_lm_eval.py URL CHECKPOINT`, in a folder that may be written to.
"""

import json
import sys
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

URL, CHECKPOINT = sys.argv[1:]
HERE = Path.cwd()
CLOSE = 1e-2
SERVED = f"model=shoal-tiny,base_url={URL}/v1/completions,num_concurrent=4,max_retries=1"
ROADS = {
    "remote tokenizer": SERVED,
    "remote tokenizer, batches": f"{SERVED},batch_size=3",
    "local tokenizer": f"{SERVED},tokenizer={CHECKPOINT},tokenizer_backend=huggingface",
    "text for prompts": f"{SERVED},tokenizer={CHECKPOINT},tokenizer_backend=huggingface,"
    "tokenized_requests=False",
}
CHOICE = """
task: choice
dataset_path: json
dataset_kwargs: {data_files: {test: choice.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
target_delimiter: " "
metric_list: [{metric: acc}]
"""
WRITE = """
task: write
dataset_path: json
dataset_kwargs: {data_files: {test: write.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n", "."], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
"""
ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs: {data_files: {test: write.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}} {{answer}}"
metric_list: [{metric: word_perplexity}]
"""


def write_tasks():
    sums = [(3, 4), (12, 7), (20, 15), (9, 9), (31, 8), (2, 6)]
    with open("choice.jsonl", "w") as choice, open("write.jsonl", "w") as write:
        for i, (a, b) in enumerate(sums):
            right = i % 3
            choices = [str(a + b + k - right) for k in range(3)] + ["<|im_end|>"]
            question = f"{a} + {b} ="
            choice.write(
                json.dumps({"question": question, "choices": choices, "answer": right}) + "\n"
            )
            write.write(json.dumps({"question": question, "answer": str(a + b)}) + "\n")
    for text in (CHOICE, WRITE, ROLLING):
        name = text.split()[1]
        (HERE / f"{name}.yaml").write_text(text)
    return TaskManager(include_path=str(HERE), include_defaults=False)


TASKS = write_tasks()


def evaluate(model, arguments, tasks=("choice", "write", "rolling"), **more):
    found = simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=list(tasks),
        task_manager=TASKS,
        log_samples=True,
        bootstrap_iters=0,
        **more,
    )
    return {
        (task, sample["doc_id"]): sample["filtered_resps"]
        for task, samples in found["samples"].items()
        for sample in samples
    }


def pairs(answers):
    """Each answer of a sample as (log likelihood, is greedy), or as text."""
    return [
        tuple(answer) if isinstance(answer, list | tuple) and len(answer) == 2 else answer
        for answer in answers
    ]


def compare(name, found, right):
    assert found.keys() == right.keys(), name
    worst = 0.0
    for key in right:
        for mine, theirs in zip(pairs(found[key]), pairs(right[key]), strict=True):
            if isinstance(theirs, str):
                assert mine == theirs, (name, key, mine, theirs)
            elif isinstance(theirs, float):
                worst = max(worst, abs(mine - theirs))
            else:
                assert mine[1] == theirs[1], (name, key, mine, theirs)
                worst = max(worst, abs(mine[0] - theirs[0]))
    assert worst < CLOSE, (name, worst)
    print(f"{name}: {len(right)} samples as transformers has them, within {worst:.1e}")


right = evaluate("hf", f"pretrained={CHECKPOINT},dtype=float32", device="cpu")
for name, arguments in ROADS.items():
    compare(name, evaluate("local-completions", arguments), right)
chatted = evaluate(
    "local-chat-completions",
    f"model=shoal-tiny,base_url={URL}/v1/chat/completions,num_concurrent=4,max_retries=1",
    tasks=["write"],
    apply_chat_template=True,
)
assert all(isinstance(answer, str) for answers in chatted.values() for answer in answers), chatted
print(f"local-chat-completions: {len(chatted)} answers")
print("lm-eval: all is well")
