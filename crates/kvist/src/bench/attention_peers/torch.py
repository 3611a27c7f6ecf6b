class Torch:
    """torch's scaled_dot_product_attention in the best form that it offers: the batch (and the heads that share a
    kv-head) as query rows over the common tokens, another call for the sequences' own, merged by their sums."""

    name = "torch"
    package = "torch"
    forms = ("f32", "bf16")

    def __init__(self, threads):
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch, self.version = torch, torch.__version__

    def prepare(self, case, form):
        torch = self.torch
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[form]
        with_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        plain = torch.nn.functional.scaled_dot_product_attention
        batch, rows, shared, own = case.batch, case.rows, case.shared, case.own
        heads, dim, group = case.kv_heads, case.head_dim, case.heads // case.kv_heads
        torch.manual_seed(1)
        tensor = lambda *shape: torch.randn(*shape, dtype=dtype)
        layers = range(case.layers)
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
