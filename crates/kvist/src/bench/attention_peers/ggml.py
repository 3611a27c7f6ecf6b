class Ggml:
    """ggml's flash_attn_ext as llama.cpp calls it: the batch as query rows over one cache, with a mask where they do
    not see all of it; where nothing is shared, a cache for each sequence. But the tokens of a head follow each
    other, where llama.cpp has the heads of a token side by side: that takes up to 2.4 times as long."""

    name = "ggml"
    package = "llama_cpp"
    forms = ("f16", "q8_0")

    F32, TYPES = 0, {"f16": 1, "q8_0": 8}
    BLOCKS = {"f16": 1, "q8_0": 32}  # of elements of a head
    VISIBLE, HIDDEN = 0x0000, 0xFC00  # 0 and minus infinity in f16

    def __init__(self, threads, folder=None):
        folder = folder or os.path.join(package_folder(self.package), "lib")
        suffix = ".dylib" if sys.platform == "darwin" else ".so"
        for part in ("base", "cpu", ""):
            path = os.path.join(folder, "-".join(filter(None, ("libggml", part))) + suffix)
            if part != "cpu" or os.path.exists(path):  # or it has one for each kind of CPU, and chooses
                library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        self.library = library
        self.call("ggml_backend_load_all_from_path", None, folder.encode())
        self.backend = self.call("ggml_backend_init_by_type", ctypes.c_void_p, 0, None)
        if not self.backend:
            raise OSError(f"{folder}: no CPU backend")
        device = self.call("ggml_backend_get_device", ctypes.c_void_p, pointer(self.backend))
        registry = self.call("ggml_backend_dev_backend_reg", ctypes.c_void_p, pointer(device))
        address = self.call(
            "ggml_backend_reg_get_proc_address", ctypes.c_void_p, pointer(registry), b"ggml_backend_set_n_threads"
        )
        ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(address)(self.backend, threads)
        self.version = self.call("ggml_version", ctypes.c_char_p).decode()

    def call(self, name, result, *args):
        function = getattr(self.library, name)
        function.restype = result
        return function(*args)

    def prepare(self, case, form):
        streams, rows, cells = case.batch, case.rows, case.own
        if case.shared:
            streams, rows, cells = 1, case.batch * case.rows, case.shared + case.batch * case.own
        kind = self.TYPES[form]
        if case.head_dim % self.BLOCKS[form]:
            return None
        row = self.call("ggml_row_size", size, kind, int64(case.head_dim))
        cache = row * cells * case.kv_heads * streams
        queries = 4 * case.head_dim * rows * case.heads * streams
        nodes = 2 * case.layers + 16
        room = case.layers * (2 * cache + queries) + queries + 2 * rows * cells
        room += (3 * case.layers + 16) * (self.call("ggml_tensor_overhead", size) + 64)
        room += self.call("ggml_graph_overhead_custom", size, size(nodes), ctypes.c_bool(False)) + 4096
        context = Context(self, room)
        q = context.tensor(self.F32, case.head_dim, rows, case.heads, streams)
        context.fill(q, self.F32, queries)
        mask = None
        if case.own and rows > 1:
            mask = context.tensor(self.TYPES["f16"], cells, rows, 1, 1)
            context.write(mask, self.mask(case, rows, cells).tobytes())
        graph = self.call("ggml_new_graph_custom", ctypes.c_void_p, context.it, size(nodes), ctypes.c_bool(False))
        for _ in range(case.layers):
            k, v = (context.tensor(kind, case.head_dim, cells, case.kv_heads, streams) for _ in "kv")
            context.fill(k, kind, cache)
            context.fill(v, kind, cache)
            scale, zero = ctypes.c_float(case.head_dim**-0.5), ctypes.c_float(0)
            out = self.call("ggml_flash_attn_ext", ctypes.c_void_p, context.it, q, k, v, mask, scale, zero, zero)
            self.call("ggml_build_forward_expand", None, pointer(graph), pointer(out))

        def run():
            if self.call("ggml_backend_graph_compute", ctypes.c_int, pointer(self.backend), pointer(graph)):
                raise OSError("ggml could not compute the graph")

        run.context = context
        return run

    def mask(self, case, rows, cells):
        """For each row, which cells it does not see."""
        mask = array.array("H", [self.HIDDEN]) * (rows * cells)
        for row in range(rows):
            sequence, at = divmod(row, case.rows)
            first = case.shared + sequence * case.own
            for begin, end in ((0, case.shared), (first, first + case.own - case.rows + at + 1)):
                begin, end = row * cells + begin, row * cells + end
                mask[begin:end] = array.array("H", [self.VISIBLE]) * (end - begin)
        return mask


size, int64, pointer = ctypes.c_size_t, ctypes.c_int64, ctypes.c_void_p


class Context:
    """Memory for tensors, which it ends with."""

    VALUES = 1 << 18

    class Parameters(ctypes.Structure):
        _fields_ = [("size", ctypes.c_size_t), ("memory", ctypes.c_void_p), ("without_data", ctypes.c_bool)]

    def __init__(self, ggml, room):
        self.ggml, self.blocks = ggml, {}
        self.it = pointer(ggml.call("ggml_init", ctypes.c_void_p, self.Parameters(room, None, False)))
        if not self.it:
            raise MemoryError(f"{room} bytes")

    def __del__(self):
        self.ggml.call("ggml_free", None, self.it)

    def tensor(self, kind, *shape):
        return pointer(self.ggml.call("ggml_new_tensor_4d", ctypes.c_void_p, self.it, kind, *map(int64, shape)))

    def data(self, tensor):
        return self.ggml.call("ggml_get_data", ctypes.c_void_p, tensor)

    def write(self, tensor, values):
        ctypes.memmove(self.data(tensor), values, len(values))

    def fill(self, tensor, kind, length):
        """Random numbers, the same ones again and again."""
        block, at = self.block(kind), self.data(tensor)
        for done in range(0, length, len(block)):
            ctypes.memmove(at + done, block, min(len(block), length - done))

    def block(self, kind):
        if kind not in self.blocks:
            source = random.Random(1)
            values = array.array("f", [source.gauss(0, 1) for _ in range(self.VALUES)])
            block = ctypes.create_string_buffer(self.ggml.call("ggml_row_size", size, kind, int64(self.VALUES)))
            if kind == Ggml.F32:
                block.raw = values.tobytes()
            else:
                start = ctypes.c_void_p(values.buffer_info()[0])
                shape = (int64(0), int64(self.VALUES // 256), int64(256))
                self.ggml.call("ggml_quantize_chunk", size, kind, start, block, *shape, None)
            self.blocks[kind] = block
        return self.blocks[kind]
