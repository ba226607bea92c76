"""Exact attention with learned relative positions that never builds a length x length tensor.

Each query sees the keys up to its own position with logits `q k + q Er[distance]` (Huang et al. 2018, "Music
Transformer", https://arxiv.org/abs/1809.04281, section 3.4). The "skewing" of the paper needs a matrix of all queries
and distances; here a block of queries is worked on at a time, in a buffer that stays in the cache of a processor:

    * Products with the keys are written into the buffer as (rows, keys). Seen with rows one element longer, the same
      memory is (rows, distances): products with the embeddings are added there, and their gradient is read from there.
    * Softmax does not change when all logits of a row are shifted. Distances beyond the last embedding can therefore
      count as 0 if the last embedding is subtracted from all others (`farthest_first`), and cost nothing.
    * Keys after a block, or before its window, are not touched. Only the log of the softmax denominator is kept for
      the backward pass, which computes the block again (as Dao et al. 2022, "FlashAttention",
      https://arxiv.org/abs/2205.14135, do in the cache of a GPU).
    * What is subtracted from the rows of a block has its type: mixed with float32 numbers, 16 bits take several times
      as long. What the gradient of the softmax subtracts costs nothing as further columns of a product.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

BLOCK_ROWS = 128
# Added to the logits of padding. Small enough to vanish in every softmax, and large enough for a row of nothing but
# padding to stay finite and differentiable, which the smallest float would not.
HIDDEN = -30000.0
# Products of queries and keys below which starting threads takes longer than they save.
WORTH_A_THREAD = 2**20
# Powers of 2 instead of e: the exponential of MKL takes up to a hundred times longer for results near and below the
# smallest float, which masked and unlikely keys have.
LOG2_E = math.log2(math.e)


class Settings(NamedTuple):
    """What the blockwise attention needs to know besides its tensors.

    Attributes:
        scaling: Factor of the queries.
        window: A query sees itself and the `window - 1` keys before it; `None` for all.
        dropout: Dropout probability of the attention weights.
        block_rows: Queries per block of 32 bits, roughly: blocks are made equally large. Blocks of 16 bits get twice as
            many.
        dtype: Of the matrix products; `None` leaves the choice to `product_dtype`.
    """

    scaling: float
    window: int | None = None
    dropout: float = 0.0
    block_rows: int = BLOCK_ROWS
    dtype: torch.dtype | None = None


class Block(NamedTuple):
    """Some queries and all keys that any of them sees; the last query's own key is the last."""

    rows: slice
    keys: slice

    @property
    def num_rows(self) -> int:
        """Number of queries."""
        return self.rows.stop - self.rows.start

    @property
    def num_keys(self) -> int:
        """Number of keys."""
        return self.keys.stop - self.keys.start


def blocks(num_queries: int, num_keys: int, settings: Settings) -> list[Block]:
    """Cut the queries, which are the last `num_queries` of the `num_keys` tokens, into blocks."""
    count = max(1, round(num_queries / settings.block_rows))
    past = num_keys - num_queries
    result = []
    for i in range(count):
        first, stop = i * num_queries // count, (i + 1) * num_queries // count
        first_key = 0 if settings.window is None else max(0, past + first - settings.window + 1)
        result.append(Block(slice(first, stop), slice(first_key, past + stop)))
    return result


class BlockBuffer:
    """Memory for the scores of one block at a time, seen by keys or by distances.

    Distance d of row i is key `num_keys - num_rows + i - d`: one row further is one key further, so the distances of
    a block are a matrix whose rows are one element longer. What would lie left of the first key falls on the end of
    the row above, on keys in the future, which are masked; above the first row there is spare room for it.

    Attributes:
        by_key: For each block, its scores as `(num_rows, num_keys)`.
        by_distance: For each block, the same memory as `(num_rows, width)`, farthest distance first. The width is
            the number of distances with an embedding, or `num_keys` if those are fewer.
    """

    def __init__(self, block_list: list[Block], num_distances: int, dtype: torch.dtype, device: torch.device):
        spare = max(block.num_rows for block in block_list)
        size = max(block.num_rows * block.num_keys for block in block_list)
        memory = torch.zeros(spare + size, dtype=dtype, device=device)
        self.by_key, self.by_distance = [], []
        for block in block_list:
            rows, keys = block.num_rows, block.num_keys
            width = min(num_distances, keys)
            self.by_key.append(memory.as_strided((rows, keys), (keys, 1), spare))
            self.by_distance.append(memory.as_strided((rows, width), (keys + 1, 1), spare + keys - rows - width + 1))


class Dropout:
    """A stream of dropout masks of a head, which a second pass over its blocks gets again from the same seed.

    Sixteen random bits per weight decide (`bernoulli_` takes five times as long): the probability is rounded to
    1/65536, and `kept` is the exact probability of staying.
    """

    def __init__(self, probability: float, seed: int, device: torch.device):
        dropped = min(round(probability * 65536), 65535)
        self.first_kept, self.kept = dropped - 32768, 1 - dropped / 65536
        self.generator = torch.Generator(device).manual_seed(seed)

    def mask(self, like: torch.Tensor) -> torch.Tensor:
        """1 for the weights that stay and 0 for the others, in shape and type of `like`."""
        bits = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
        bits.random_(-(2**63), None, generator=self.generator)
        lanes = bits.view(torch.int16)[: like.numel()].view(like.shape)
        return torch.ge(lanes, self.first_kept, out=torch.empty_like(like))


def product_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Type for matrix products on the device of `tensor`: its own, or float32 where the CPU would emulate it."""
    if tensor.device.type != "cpu" or tensor.dtype not in (torch.bfloat16, torch.float16):
        return tensor.dtype
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast and tensor.dtype == torch.bfloat16 else torch.float32


def accumulate(target: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add `left @ right` to `target`."""
    if target.dtype == left.dtype and target.dtype in (torch.float32, torch.float64):
        target.addmm_(left, right)
    else:  # in 16 bits, a product into a strided view takes a path fifteen times slower
        target.add_(torch.mm(left, right))


def with_columns(tensor: torch.Tensor, *columns: torch.Tensor | float) -> torch.Tensor:
    """`tensor`, a matrix, with further columns of its type on the right."""
    wider = tensor.new_empty(len(tensor), tensor.shape[1] + len(columns))
    wider[:, : tensor.shape[1]] = tensor
    for place, column in enumerate(columns, tensor.shape[1]):
        wider[:, place] = column
    return wider


class Head(NamedTuple):
    """Inputs of one head of one sequence, contiguous and of the type of the products.

    Attributes:
        query: Scaled, shape `(num_queries, head_dim)`.
        key: Shape `(num_keys, head_dim)`.
        value: Shape as `key`.
        table: See `farthest_first`, shape `(num_distances, head_dim)`.
        mask: Shape `(num_queries, num_keys)`, True where a key may be seen, or a number to add.
        dropout: Masks of the weights.
        kept: Probability of a weight to stay.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    table: torch.Tensor
    mask: torch.Tensor | None
    dropout: Dropout | None
    kept: float


class Workspace:
    """What the forward and the backward pass over some heads have in common; each thread has its own."""

    def __init__(self, query: torch.Tensor, key: torch.Tensor, num_distances: int, settings: Settings):
        self.dtype = settings.dtype or product_dtype(query)
        if self.dtype.itemsize == 2:  # as large in memory, and what a call costs weighs more: products are faster
            settings = settings._replace(block_rows=2 * settings.block_rows)
        self.settings = settings
        self.wide = torch.promote_types(self.dtype, torch.float32)  # of sums over many keys or queries
        self.blocks = blocks(query.shape[2], key.shape[2], settings)
        self.num_rows = [block.num_rows for block in self.blocks]
        self.scores = BlockBuffer(self.blocks, num_distances, self.dtype, query.device)

    def hide(self, scores: torch.Tensor) -> torch.Tensor:
        """Set the weights of one block to 0 where no query may see, which takes a fifth of adding -inf to logits."""
        rows, keys, window = *scores.shape, self.settings.window
        scores[:, keys - rows :].tril_()  # the future
        if window is not None and keys > window:
            scores[:, : keys - window].triu_(keys - window - rows + 1)
        return scores

    def largest(self, logits: torch.Tensor) -> torch.Tensor:
        """Largest logit of each row that its query may see, shape `(num_rows, 1)`; hides the others."""
        rows, keys, window = *logits.shape, self.settings.window
        logits[:, keys - rows :].add_(logits.new_full((rows, rows), -math.inf).triu_(1))
        if window is not None and keys > window:
            width = keys - window
            logits[:, :width].add_(logits.new_full((rows, width), -math.inf).tril_(width - rows))
        return logits.amax(1, keepdim=True)

    def head(self, index: tuple[int, int], query, key, value, table, mask, seed: int) -> Head:
        """The inputs of the head at `(sequence, head)`."""
        # Operators on 16 bits are fast only where memory is contiguous.
        scaled = query[index].contiguous().mul(self.settings.scaling * LOG2_E).to(self.dtype)
        own_key, own_value = (x[index].to(self.dtype).contiguous() for x in (key, value))
        own_table, own_mask = table[index[1]].to(self.dtype), None if mask is None else mask[index]
        if not self.settings.dropout:
            return Head(scaled, own_key, own_value, own_table, own_mask, None, 1.0)
        own_seed = seed + index[0] * query.shape[1] + index[1]  # whatever the order of the heads
        dropout = Dropout(self.settings.dropout, own_seed, query.device)
        return Head(scaled, own_key, own_value, own_table, own_mask, dropout, dropout.kept)

    def needs_no_shift(self, head: Head) -> bool:
        """Whether 2 to the power of any logit, and the sum of a row, is far from the limits of the type.

        No logit is larger than the product of the norms (Cauchy-Schwarz).
        """
        if head.mask is not None:  # a row may see nothing but padding
            return False
        norms = [torch.linalg.vector_norm(x, dim=1, dtype=self.wide) for x in (head.query, head.key, head.table)]
        query, key, table = (float(x.max()) if len(x) else 0.0 for x in norms)
        room = 28  # for sums over keys, products with values, and norms that were rounded
        return query * (key + table) < math.log2(torch.finfo(self.dtype).max) - room

    def logits(self, number: int, query: torch.Tensor, key: torch.Tensor, head: Head) -> torch.Tensor:
        """Logits of one block, to the base of 2, masked but for order and window: shape `(num_rows, num_keys)`."""
        block, scores, by_distance = self.blocks[number], self.scores.by_key[number], self.scores.by_distance[number]
        torch.mm(query, key.t(), out=scores)
        if width := by_distance.shape[1]:
            accumulate(by_distance, query, head.table[-width:].t())
        if head.mask is not None:
            part = head.mask[block.rows, block.keys]
            scores.add_(part if part.dtype != torch.bool else part.logical_not().to(scores.dtype).mul_(HIDDEN))
        return scores


def attend(work: Workspace, head: Head, output: torch.Tensor, log_sum: torch.Tensor) -> None:
    """Attention of one head, written to `output` and, for the backward pass, `log_sum` (to the base of 2)."""
    no_shift = work.needs_no_shift(head)
    rows = zip(*(x.split(work.num_rows) for x in (head.query, output, log_sum)), strict=True)
    for number, (query, block_output, block_log_sum) in enumerate(rows):
        keys = work.blocks[number].keys
        weights = work.logits(number, query, head.key[keys], head)
        largest = weights.new_zeros(1, 1) if no_shift else work.largest(weights)
        weights = work.hide((weights if no_shift else weights.sub_(largest)).exp2_())
        total = weights.sum(1, keepdim=True, dtype=work.wide)
        if head.dropout is not None:
            weights.mul_(head.dropout.mask(weights))
        block_output.copy_(torch.mm(weights, head.value[keys]).div_(total * head.kept))
        block_log_sum.copy_(total.log2_().add_(largest)[:, 0])


def attend_backward(
    work: Workspace, buffer: BlockBuffer, head: Head, grad: torch.Tensor, output: torch.Tensor, log_sum: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Gradients of one head: of its query before scaling, key, value and table."""
    # Weights are computed up to a factor of each row, which belongs to `grad` instead: 2 to the power of what the
    # logarithm of the denominator lacks once it is a number of the type of the products.
    shift = log_sum.to(work.dtype)
    factor = (shift - log_sum).exp2_().div_(head.kept).unsqueeze_(1)
    wide_grad = grad.to(work.wide).mul(factor)
    # Of `centre` as one number of 16 bits, the rounding would show in sums over all keys: hence as two.
    centre = (wide_grad * output.to(work.wide)).sum(1).mul_(head.kept)
    high = centre.to(work.dtype)
    low = centre - high
    grad = wide_grad.to(work.dtype)
    wider_grad, wider_value = grad, head.value
    if head.dropout is None:
        wider_grad, wider_value = with_columns(grad, -high, -low), with_columns(head.value, 1.0, 1.0)
    grad_query, grad_key, grad_value, grad_table = (torch.zeros_like(x, dtype=work.wide) for x in head[:4])
    of_rows = (head.query, grad_query, grad, wider_grad, high.unsqueeze(1), shift.unsqueeze(1))
    for number, (query, block_grad_query, block_grad, block_wider_grad, block_centre, block_shift) in enumerate(
        zip(*(x.split(work.num_rows) for x in of_rows), strict=True)
    ):
        keys = work.blocks[number].keys
        key, grad_scores, by_distance = head.key[keys], buffer.by_key[number], buffer.by_distance[number]
        # Rounded as in the forward pass, or weights would not fit the denominator: so no column of the product here.
        weights = work.hide(work.logits(number, query, key, head).sub_(block_shift).exp2_())
        torch.mm(block_wider_grad, wider_value[keys].t(), out=grad_scores)
        if head.dropout is None:
            accumulate(grad_value[keys], weights.t(), block_grad)
            grad_scores.mul_(weights)
        else:
            staying = head.dropout.mask(weights).mul_(weights)
            accumulate(grad_value[keys], staying.t(), block_grad)
            grad_scores.mul_(staying).sub_(weights.mul_(block_centre))
        accumulate(block_grad_query, grad_scores, key)
        accumulate(grad_key[keys], grad_scores.t(), query)
        if width := by_distance.shape[1]:
            # Where the view leaves the past of a row, the gradient is 0, as the weight is, and so is the spare room.
            accumulate(block_grad_query, by_distance, head.table[-width:])
            accumulate(grad_table[-width:], by_distance.t(), query)
    # The query that keys and embeddings were multiplied with was scaled for powers of 2 instead of e.
    return grad_query.mul_(work.settings.scaling), grad_key.div_(LOG2_E), grad_value, grad_table.div_(LOG2_E)


def share_heads(run: Callable[[list[tuple[int, int]]], None], query: torch.Tensor, num_keys: int) -> None:
    """Call `run` with every `(sequence, head)`: at once, or in parts, each in a thread of its own.

    Blocks are small, and operators that share one among threads wait for each other after each step, for very long
    where other programs compute too. Heads need no waiting. All sequences of a head come to the same thread.
    """
    batch, num_heads, num_queries, _ = query.shape
    threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()
    count = min(threads, num_heads) if query.device.type == "cpu" else 1
    if batch * num_heads * num_queries * num_keys < WORTH_A_THREAD:
        count = 1

    def part(number: int) -> None:
        # Modes belong to threads.
        with torch.inference_mode(inference), torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            run([(sequence, head) for head in range(number, num_heads, count) for sequence in range(batch)])

    if count == 1:
        part(0)
        return
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads // count,)) as pool:
            list(pool.map(part, range(count)))
    finally:
        torch.set_num_threads(threads)  # of threads that are yet to come; the number of this one has not changed


class BlockwiseRelativeAttention(torch.autograd.Function):
    """The function behind `blockwise_relative_attention`, with `table` from `farthest_first` and an expanded mask."""

    @staticmethod
    def forward(ctx: Any, query, key, value, table, mask, settings: Settings) -> torch.Tensor:
        """Keep the inputs, the output and one number per query and head."""
        batch, num_heads, num_queries, _ = query.shape
        seed = int(torch.randint(2**62, ())) if settings.dropout else 0
        # In memory (batch, query, head, head_dim), as the layers before and after want it.
        output = query.new_empty(batch, num_queries, num_heads, value.shape[3]).transpose(1, 2)
        wide = torch.promote_types(settings.dtype or product_dtype(query), torch.float32)
        log_sum = query.new_empty(batch, num_heads, num_queries, dtype=wide)

        def run(indices: list[tuple[int, int]]) -> None:
            work = Workspace(query, key, table.shape[1], settings)
            for index in indices:
                attend(work, work.head(index, query, key, value, table, mask, seed), output[index], log_sum[index])

        share_heads(run, query, key.shape[2])
        ctx.save_for_backward(query, key, value, table, mask, output, log_sum)
        ctx.settings, ctx.seed = settings, seed
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Compute each block once more, and the gradients with it."""
        query, key, value, table, mask, output, log_sum = ctx.saved_tensors
        grad_query, grad_key, grad_value = (torch.empty_like(x) for x in (query, key, value))
        grad_table = torch.zeros_like(table, dtype=log_sum.dtype)

        def run(indices: list[tuple[int, int]]) -> None:
            work = Workspace(query, key, table.shape[1], ctx.settings)
            buffer = BlockBuffer(work.blocks, table.shape[1], work.dtype, query.device)
            for index in indices:
                head = work.head(index, query, key, value, table, mask, ctx.seed)
                grads = attend_backward(work, buffer, head, grad_output[index], output[index], log_sum[index])
                grad_query[index], grad_key[index], grad_value[index] = grads[:3]
                grad_table[index[1]] += grads[3]

        share_heads(run, query, key.shape[2])
        return grad_query, grad_key, grad_value, grad_table.to(table.dtype), None, None


def farthest_first(embedding: torch.Tensor, num_keys: int, window: int | None) -> torch.Tensor:
    """The embeddings that matter to `num_keys` keys, in the order of the keys.

    Args:
        embedding: Shape `(num_heads, max_relative_distance, head_dim)`, distance 0 first; the last one also stands for
            all larger distances.
        num_keys: Number of keys.
        window: Number of keys that a query sees at most.

    Returns:
        Shape `(num_heads, num_distances, head_dim)`, distance 0 last. Distances that have no entry count as 0: if there
        are any in reach, the last embedding is subtracted from all, which no softmax notices.
    """
    reach = num_keys if window is None else min(num_keys, window)
    if reach > embedding.shape[1]:
        return (embedding[:, :-1] - embedding[:, -1:]).flip(1)
    return embedding[:, :reach].flip(1)


def blockwise_relative_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    embedding: torch.Tensor,
    mask: torch.Tensor | None,
    settings: Settings,
) -> torch.Tensor:
    """Causal attention with relative positions in memory that does not grow with length x length.

    Args:
        query: Shape `(batch, num_heads, num_queries, head_dim)`; the queries are the last of the tokens.
        key: Shape `(batch, num_heads, num_keys, head_dim)`.
        value: Shape `(batch, num_heads, num_keys, value_dim)`.
        embedding: Shape `(num_heads, max_relative_distance, head_dim)`, distance 0 first.
        mask: `None`, or what hides keys besides order and window: True where a key may be seen, or a number to add;
            broadcast to `(batch, num_heads, num_queries, num_keys)`.
        settings: The rest.

    Returns:
        Shape `(batch, num_heads, num_queries, value_dim)`, differentiable once in the first four arguments.
    """
    if mask is not None:
        if mask.dtype != torch.bool:
            mask = (mask * LOG2_E).clamp_min(HIDDEN)
        elif mask.shape[2] == 1:  # per key and not per query: small
            mask = mask.logical_not().to(settings.dtype or product_dtype(query)) * HIDDEN
        mask = mask.expand(len(query), query.shape[1], query.shape[2], key.shape[2])
    table = farthest_first(embedding, key.shape[2], settings.window)
    return BlockwiseRelativeAttention.apply(query, key, value, table, mask, settings)
