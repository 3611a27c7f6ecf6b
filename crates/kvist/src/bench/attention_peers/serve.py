def answer(**fields):
    print(json.dumps(fields), flush=True)


def started(threads, folder):
    """The peers that this python has."""
    peers = {}
    for kind in (Torch, Ggml, ChunkAttention):
        with_folder = (folder,) if kind is Ggml and folder else ()
        if not with_folder and not package_folder(kind.package):
            continue
        try:
            peers[kind.name] = kind(threads, *with_folder)
        except Exception as error:
            raise RuntimeError(f"{kind.name}: {error}") from error
    if not peers:
        raise ImportError("none of torch, llama_cpp, chunk_attn is installed there")
    return peers


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def fastest(peer, case):
    """The case in the peer's fastest form, ready to run, and what is said of it; None and None if none does."""
    tried = {}
    for form in peer.forms:
        run = peer.prepare(case, form)
        if run is None:
            continue
        run()
        tried[form] = min(seconds(run) for _ in range(2)) / case.layers
        run = None  # the memory, before the next
    if not tried:
        return None, None
    form = min(tried, key=tried.get)
    return peer.prepare(case, form), {"form": form, "tried": tried}


def serve(threads, folder=None):
    peers = started(int(threads), folder)
    answer(peers={name: peer.version for name, peer in peers.items()})
    runs = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, str):
            answer(seconds=seconds(runs[asked]))
            continue
        runs, loaded = {}, {}
        for name, peer in peers.items():
            runs[name], loaded[name] = fastest(peer, types.SimpleNamespace(**asked))
        answer(loaded=loaded)


if __name__ == "__main__":
    try:
        serve(*sys.argv[1:])
    except Exception as error:
        answer(error=str(error))
        sys.exit(1)
