class ChunkAttention:
    """Microsoft's ChunkAttention on a CPU: a trie of chunks in f32, as many heads of keys as of queries, one row for
    each sequence. A form says how it divides the work, chunks first (c) or by sequences (s), and a chunk's tokens."""

    name = "ChunkAttention"
    package = "chunk_attn"
    forms = ("c64", "c128", "s64")

    def __init__(self, threads):
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        import chunk_attn

        self.torch, self.chunk_attn, self.version = torch, chunk_attn, chunk_attn.__version__

    def prepare(self, case, form):
        if case.rows > 1 or case.heads != case.kv_heads:
            return None
        torch, chunk = self.torch, int(form[1:])
        tensor = lambda tokens: torch.randn(tokens, case.heads, case.head_dim)
        chunks = -(-case.shared // chunk) + case.batch * (case.own // chunk + 2)
        megabytes = -(-chunks * chunk * case.heads * case.head_dim * 8 // (1 << 20)) + 1

        def layer():
            trie = self.chunk_attn.Attention(
                n_heads=case.heads, d_head=case.head_dim, chunk_size=chunk, memory_mb=megabytes,
                dtype=torch.float32, device=torch.device("cpu"),
            )
            k, v = tensor(case.shared + case.own), tensor(case.shared + case.own)
            for i in range(case.batch):  # it copies what it does not have yet
                trie.add_seq([*range(case.shared), *([-1 - i] * case.own)], k, v)
                k[case.shared :].normal_()
                v[case.shared :].normal_()
            return trie

        torch.manual_seed(1)
        q, layers = tensor(case.batch), [layer() for _ in range(case.layers)]
        partition = 2 if form[0] == "s" else 0

        def run():
            for trie in layers:
                trie.forward(q, partition)

        return run
