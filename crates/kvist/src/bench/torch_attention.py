"""torch's scaled_dot_product_attention beside `kvist bench attention --python`: a JSON object a line in, one a line out.

A case is `batch` sequences of `rows` query rows each on `shared` common tokens and `own` ones of their own; `layers` copies
of keys and values follow each other, as in a model. The best form that torch offers: the batch (and the heads that share a
kv-head) as query rows over the common tokens, another call for the sequences' own, merged by their sums; f32 or bf16,
whichever is faster here.
"""

import json
import sys
import time


def answer(**fields):
    print(json.dumps(fields), flush=True)


try:
    import torch
except ImportError as error:
    answer(error=str(error))
    sys.exit(1)

with_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
plain = torch.nn.functional.scaled_dot_product_attention


def prepare(case, dtype):
    batch, rows, shared, own = (case[key] for key in ("batch", "rows", "shared", "own"))
    heads, dim, group = case["kv_heads"], case["head_dim"], case["heads"] // case["kv_heads"]
    tensor = lambda *shape: torch.randn(*shape, dtype=dtype)
    layers = range(case["layers"])
    common = [(tensor(1, heads, shared, dim), tensor(1, heads, shared, dim)) for _ in layers if shared]
    private = [(tensor(batch, heads, own, dim), tensor(batch, heads, own, dim)) for _ in layers if own]
    q = tensor(batch, heads, group * rows, dim)
    as_rows = q.transpose(0, 1).reshape(1, heads, batch * group * rows, dim)
    mask = None
    if rows > 1:  # of its own tokens, row r sees those up to its own
        last = torch.arange(rows).repeat(group) + own - rows
        hidden = torch.arange(own)[None, :] > last[:, None]
        mask = torch.zeros(group * rows, own, dtype=dtype).masked_fill_(hidden, float("-inf"))

    def attend(layer):
        if not own:
            return plain(as_rows, *common[layer])
        if not shared:
            return plain(q, *private[layer], attn_mask=mask)
        a, sum_a = with_sums(as_rows, *common[layer])
        b, sum_b = with_sums(q, *private[layer], attn_mask=mask)
        back = lambda x: x.reshape(heads, batch, group * rows, -1).transpose(0, 1)
        weight = torch.sigmoid(back(sum_a[0].unsqueeze(-1)) - sum_b.unsqueeze(-1))
        return torch.lerp(b.float(), back(a[0]).float(), weight)

    def run():
        for layer in layers:
            attend(layer)

    return run


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


torch.set_num_threads(int(sys.argv[1]))
answer(torch=torch.__version__)
run = None
with torch.inference_mode():
    for line in sys.stdin:
        case = json.loads(line)
        if case is None:
            answer(seconds=seconds(run))
            continue
        run = None  # the memory of the last case
        torch.manual_seed(1)
        best = {}
        for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
            run = prepare(case, dtype)
            run()
            best[name] = min(seconds(run) for _ in range(2))
            run = None
        dtype = min(best, key=best.get)
        run = prepare(case, {"f32": torch.float32, "bf16": torch.bfloat16}[dtype])
        answer(dtype=dtype)
