"""The task of the norms per channel: the view, how it is cut, and its channels' coefficients."""

cimport numpy as cnp

from fastnorm._cpu cimport streams_well
from fastnorm._kernels cimport sixteen
from fastnorm._kernels.arrays cimport FLOAT32, Dtype, itemsize_of, real
from fastnorm._kernels.blocks cimport BLOCK_BYTES, BLOCKS_PER_THREAD, MAX_PARTIALS, ceil_div
from fastnorm._kernels.columns cimport FOUR, STRIP
from fastnorm._kernels.memory cimport Route
from fastnorm._kernels.moments cimport Extent, rescue
from fastnorm._kernels.operands cimport BLOCK, Operand, Scratch, load_block, nth, of_this_thread
from fastnorm._kernels.operands cimport padded, room, set_operand, take_as_stored

cdef enum:
    MIN_PLANE = 32              # elements: shorter planes are columns,
    LONG_PLANE = 128            # longer ones are not,
    FEW_PLANES = 64             # in between, more than s²/FEW_PLANES are
    MIN_RUN = 16                # elements: shorter planes are mapped as columns
    MIN_COLUMNS = 64            # narrower rows are taken several at a time
    WIDE_COLUMNS = 512          # as wide as that where there are MANY_ROWS
    MANY_ROWS = 768
    TILE_BYTES = 4096           # of a row in a tile of columns
    CACHED_BYTES = 524288       # of a tile that a block finds again in cache
    MAX_TILE = 16               # channels in a tile of planes
    PIECE = 1024                # elements of a plane: how far ahead memory is asked for
    ONE_RANGE = 512             # rows: as many are one range of columns, more are cut into
    RANGE_ROWS = 256            # so many each, which keeps partial results small beside them
    RANGE_COLUMNS = 256         # of a tile of one range, at least
    RANGE_ELEMENTS = 32768      # of a channel in a range of planes, at least
    FEW = 256                   # channels that are prepared or finished at a time
    PAD = 16                    # coefficients: what a vector or a line has at most

cdef enum Reduction:
    NO_REDUCTION                # the coefficients are given
    MOMENTS                     # mean and Σ(x - mean)²
    SQUARES                     # 0 and Σx²
    CENTRED_SUMS                # Σ(x - centre) and Σ(x - centre)²
    GRADIENT_SUMS               # Σdy and Σdy·x̂, x̂ = (x - centre)·inverse

cdef enum Map:
    NO_MAP                      # the two numbers are what is wanted
    SCALE_SHIFT                 # y = (source - centre)·scale + shift
    GRADIENT                    # dx = (dy + ((x - centre)·slope + shift))·scale
    WEIGHTED_GRADIENT           # dx = (dy·scale + ((x - centre)·slope + shift))·inverse

# The rows of `coefficients`.
cdef enum Coefficient:
    CENTRE
    INVERSE
    SCALE
    SHIFT
    SLOPE
    COEFFICIENTS

# What a norm does to a few channels, at most FEW, from `channel` on.
ctypedef void (*prepare_function)(Channels* t, Py_ssize_t channel, Py_ssize_t n) noexcept nogil
ctypedef void (*finish_function)(
    Channels* t, Py_ssize_t channel, Py_ssize_t n, double* first, double* second
) noexcept nogil
# What it does to all channels of some groups, once each of them is finished.
ctypedef void (*conclude_function)(
    Channels* t, Py_ssize_t first_channel, Py_ssize_t last_channel
) noexcept nogil


# How the work is cut: ranges of units by tiles of channels.
cdef struct Grid:
    Py_ssize_t ranges, units_per_range
    Py_ssize_t tiles, channels_per_tile


cdef struct Channels:
    Reduction reduction
    Map map
    bint centred                # so are the gradients' sums
    bint linear                 # the map's centre and shift are 0
    prepare_function prepare    # sets the coefficients that the reduction needs, or NULL
    finish_function finish      # takes two numbers a channel, sets the coefficients of the map
    conclude_function conclude  # sets them where they depend on a whole group, or NULL
    void* norm                  # what these need to know

    Dtype dtype                 # that is computed in
    Py_ssize_t n, c, s          # the view
    Py_ssize_t batch            # views, one after another, each with statistics of its own
    Py_ssize_t sample           # which of them this is
    Py_ssize_t group            # channels that are concluded together
    Channels* mapped            # the view of the same elements that is mapped, if it is another
    Py_ssize_t base             # index of the view's first element: where the sample begins
    Py_ssize_t origin           # the same in x and dy, of planes, and how far these are from one
    Py_ssize_t plane_step       # sample to the next there: see `Tile`
    const Operand* x
    const Operand* dy           # NULL in forward
    const Operand* source       # of SCALE_SHIFT: x or dy
    const Operand* y
    bint direct                 # so are all of these: see operands.pxd
    Dtype stored                # what the elements of their blocks are
    Py_ssize_t room             # elements of a block of them
    Scratch scratch             # for blocks

    bint planes
    Py_ssize_t repeats          # rows of the view in a row of columns
    Py_ssize_t width            # columns in a row, or channels
    Py_ssize_t apart            # from one row of their coefficients to the next
    Py_ssize_t inner            # columns of a channel that lie side by side
    Py_ssize_t units            # rows of columns, or pieces of a channel's planes
    Py_ssize_t pieces           # of a plane
    Py_ssize_t tail             # columns of the incomplete last row, where there is one
    Grid grid                   # of the reduction
    Grid map_grid
    bint whole_tiles            # a block takes all ranges of its tile
    Route route                 # see memory.pxd
    Py_ssize_t ahead            # elements: how far the map asks for memory in advance

    double* first               # (ranges, width)
    double* second              # (ranges, width)
    # (COEFFICIENTS, apart), in `dtype`. Of columns, the first of each row follow its last, so that
    # what goes from the end of a row of columns to the beginning of the next is a vector, too.
    void* coefficients


# The grid


cdef inline void plan_columns(Channels* t, Py_ssize_t itemsize) noexcept nogil:
    cdef Py_ssize_t width = t.c * t.s, tile
    cdef Py_ssize_t least = WIDE_COLUMNS if t.n >= MANY_ROWS else MIN_COLUMNS
    t.planes = False
    t.inner, t.pieces, t.repeats = t.s, 1, 1
    if width < least and t.s < MIN_RUN:
        # A number of rows whose columns fill whole vectors.
        while t.repeats * width % 16 and t.repeats < 16:
            t.repeats *= 2
        while t.repeats * width < least:
            t.repeats *= 2
        if t.repeats > t.n:
            t.repeats = 1
    t.width = width * t.repeats
    t.apart = ceil_div(t.width + PAD, PAD) * PAD
    t.units = t.n // t.repeats
    t.tail = width * (t.n % t.repeats)
    # Runs of memory that are shorter than a page take longer than another sweep.
    tile = CACHED_BYTES // (t.n * itemsize * (2 if t.reduction == GRADIENT_SUMS else 1))
    t.whole_tiles = t.repeats == 1 and tile >= min(width, TILE_BYTES // itemsize)
    t.grid.ranges, t.grid.units_per_range = 1, t.units
    if t.whole_tiles:
        tile = min(TILE_BYTES // itemsize, max(ceil_div(width, 2), TILE_BYTES // 4 // itemsize))
        t.grid.channels_per_tile = min(t.c, ceil_div(tile, t.s))
        return
    tile = STRIP
    if t.repeats == 1 and t.n <= ONE_RANGE:
        tile = min(max(ceil_div(width, 4), <Py_ssize_t> RANGE_COLUMNS), 2 * RANGE_COLUMNS)
    else:
        t.grid.units_per_range = max(<Py_ssize_t> RANGE_ROWS, ceil_div(t.units, MAX_PARTIALS))
        t.grid.ranges = ceil_div(t.units, t.grid.units_per_range)
    t.grid.channels_per_tile = t.c
    if t.repeats == 1:
        least = ceil_div(t.c, max(MAX_PARTIALS // t.grid.ranges, <Py_ssize_t> 1))
        t.grid.channels_per_tile = min(t.c, max(ceil_div(tile, t.s), least))
    if t.tail:
        t.grid.ranges += 1


cdef inline void widen_tiles(Channels* t) noexcept nogil:
    """Where columns are summed in a phase of its own and by one thread: which of them are in one
    tile changes no result, and long runs of memory are best."""
    cdef Py_ssize_t channels = ceil_div(min(t.width, <Py_ssize_t> 2 * RANGE_COLUMNS), t.inner)
    if t.repeats == 1 and t.grid.channels_per_tile < channels:
        t.grid.channels_per_tile, t.grid.tiles = channels, ceil_div(t.c, channels)


cdef inline void plan_planes(Channels* t, Py_ssize_t itemsize) noexcept nogil:
    cdef Py_ssize_t plane = t.s * itemsize, channel = t.n * plane, tile
    t.planes = True
    t.repeats, t.inner, t.tail = 1, 1, 0
    t.width = t.apart = t.c
    t.pieces = ceil_div(t.s, PIECE)
    t.units = t.n * t.pieces
    t.grid.units_per_range = max(
        ceil_div(RANGE_ELEMENTS, min(t.s, <Py_ssize_t> PIECE)), ceil_div(t.units, MAX_PARTIALS)
    )
    t.grid.ranges = ceil_div(t.units, t.grid.units_per_range)
    t.whole_tiles = t.grid.ranges == 1 or t.c >= MAX_PARTIALS // 2
    t.grid.channels_per_tile = 1
    if t.whole_tiles:
        tile = max(BLOCK_BYTES // channel, BLOCK_BYTES // 8 // plane)
        t.grid.channels_per_tile = max(min(min(tile, t.c), <Py_ssize_t> MAX_TILE), <Py_ssize_t> 1)


cdef inline void plan_map(Channels* t, Py_ssize_t itemsize) noexcept nogil:
    """Where the map is a phase of its own, the best blocks are whole pieces of memory."""
    cdef Py_ssize_t plane = t.s * itemsize
    t.map_grid.channels_per_tile = t.c
    if t.planes:
        t.map_grid.channels_per_tile = max(
            min(t.c, 2 * BLOCK_BYTES // plane), <Py_ssize_t> 1
        )
    t.map_grid.units_per_range = t.pieces * max(
        2 * BLOCK_BYTES // (t.repeats * t.map_grid.channels_per_tile * plane),
        <Py_ssize_t> (1 if t.s >= MIN_RUN else FOUR)
    )
    if plane > CACHED_BYTES:
        t.map_grid.units_per_range = CACHED_BYTES // itemsize // PIECE
    t.map_grid.ranges = ceil_div(t.units, t.map_grid.units_per_range) + (1 if t.tail else 0)


cdef inline bint has_planes(Reduction reduction, Py_ssize_t n, Py_ssize_t s) noexcept nogil:
    """Each plane has lanes to fold, each column sums and coefficients of its own: columns are worth
    it where n is large beside s. Inference has no sums, and gives the same bits either way."""
    if n == 1:
        return s > 1  # a channel's only plane is a row, however short
    if s >= LONG_PLANE:
        return True
    if reduction == NO_REDUCTION:
        # Many short runs in turn cost an ordinary store more than they do one past the cache.
        return s >= MIN_RUN and (n <= FEW_PLANES or streams_well())
    return s >= MIN_PLANE and s * s >= FEW_PLANES * n


cdef inline void plan(
    Channels* t, Reduction reduction, Dtype dtype, Py_ssize_t n, Py_ssize_t c, Py_ssize_t s
) noexcept nogil:
    t.reduction, t.dtype, t.centred = reduction, dtype, True
    t.n, t.c, t.s, t.plane_step = n, c, s, c * s
    t.batch, t.sample, t.group = 1, 0, 1
    t.conclude, t.mapped = NULL, NULL
    if has_planes(reduction, n, s):
        plan_planes(t, itemsize_of(dtype))
    else:
        plan_columns(t, itemsize_of(dtype))
    plan_map(t, itemsize_of(dtype))
    if reduction == NO_REDUCTION:
        t.whole_tiles = False
        t.grid = t.map_grid
    t.grid.tiles = ceil_div(t.c, t.grid.channels_per_tile)
    t.map_grid.tiles = ceil_div(t.c, t.map_grid.channels_per_tile)


# Groups: (batch, N, C, S), statistics for each sample and group of adjacent channels. The ranges,
# and with them the order of the additions, depend on the shape alone; whether a block does all to
# its groups or there are phases may depend on the number of threads too.


cdef inline void plan_groups(
    Channels* t, Reduction reduction, Dtype dtype, Py_ssize_t batch, Py_ssize_t n, Py_ssize_t c,
    Py_ssize_t s, Py_ssize_t group,
) noexcept nogil:
    cdef Py_ssize_t itemsize = itemsize_of(dtype)
    t.reduction, t.dtype, t.centred = reduction, dtype, True
    t.n, t.c, t.s, t.plane_step = n, c, s, c * s
    t.batch, t.sample, t.group = batch, 0, group
    t.conclude, t.mapped = NULL, NULL
    if s < (MIN_RUN if n == 1 else LONG_PLANE):
        plan_columns(t, itemsize)
    else:
        plan_planes(t, itemsize)
        if n == 1:
            t.grid.channels_per_tile = max(min(BLOCK_BYTES // (s * itemsize), c), <Py_ssize_t> 1)
    plan_map(t, itemsize)
    t.grid.tiles = ceil_div(t.c, t.grid.channels_per_tile)
    t.map_grid.tiles = ceil_div(t.c, t.map_grid.channels_per_tile)


cdef inline void plan_whole_tiles(Channels* t, int team) noexcept nogil:
    """Tiles of whole groups, where there are enough of them for all threads or they are small."""
    cdef Channels* mapped = t.mapped
    cdef Py_ssize_t channels = ceil_div(t.grid.channels_per_tile, t.group) * t.group
    cdef Py_ssize_t tiles = ceil_div(t.c, channels)
    cdef Py_ssize_t num_bytes = t.n * channels * t.s * itemsize_of(t.dtype)
    t.whole_tiles = (
        team == 1 or t.batch * tiles >= BLOCKS_PER_THREAD * team or num_bytes <= 2 * BLOCK_BYTES
    )
    if t.whole_tiles:
        t.grid.channels_per_tile, t.grid.tiles = channels, tiles
    if mapped != NULL:
        mapped.whole_tiles = t.whole_tiles
        mapped.grid.ranges, mapped.grid.units_per_range = 1, mapped.units
        mapped.grid.tiles = t.grid.tiles
        mapped.grid.channels_per_tile = t.grid.channels_per_tile * (mapped.c // t.c)


cdef struct Block:
    Py_ssize_t range
    Py_ssize_t first_unit, last_unit
    Py_ssize_t first_channel, last_channel
    Py_ssize_t first_column, last_column


cdef inline Block block_at(
    Channels* t, const Grid* grid, Py_ssize_t range_, Py_ssize_t tile
) noexcept nogil:
    cdef Block b
    b.range = range_
    b.first_channel = tile * grid.channels_per_tile
    b.last_channel = min(b.first_channel + grid.channels_per_tile, t.c)
    b.first_unit = b.range * grid.units_per_range
    b.last_unit = min(b.first_unit + grid.units_per_range, t.units)
    b.first_column = b.first_channel * t.inner
    b.last_column = b.last_channel * t.inner
    if t.repeats > 1:
        b.last_column = t.width
        if t.tail and b.range == grid.ranges - 1:
            b.first_unit, b.last_unit, b.last_column = t.units, t.units + 1, t.tail
    return b


cdef inline Py_ssize_t range_count(Channels* t, Py_ssize_t index) noexcept nogil:
    """Elements that a range adds to a channel (planes) or to a column."""
    cdef Block b = block_at(t, &t.grid, index, 0)
    cdef Py_ssize_t count = b.last_unit - b.first_unit
    if not t.planes:
        return count
    # Of a plane's pieces the last may be shorter.
    count *= min(t.s, <Py_ssize_t> PIECE)
    count -= (b.last_unit // t.pieces - b.first_unit // t.pieces) * (
        t.pieces * min(t.s, <Py_ssize_t> PIECE) - t.s
    )
    return count


cdef inline Py_ssize_t range_width(Channels* t, Py_ssize_t index) noexcept nogil:
    return t.tail if t.tail and index == t.grid.ranges - 1 else t.width


# The large arrays of a pass.
cdef struct Operands:
    Operand x
    Operand dy
    Operand y


cdef inline void set_operands(
    Operands* o, cnp.ndarray x, cnp.ndarray dy, cnp.ndarray y, Dtype dtype
) noexcept:
    set_operand(&o.x, x, dtype)
    set_operand(&o.dy, dy, dtype)
    set_operand(&o.y, y, dtype)
    take_as_stored(&o.x, &o.dy, &o.y, dtype)


cdef inline void use_operands(Channels* t, const Operands* o) noexcept nogil:
    """What is mapped is the gradient, where there is one."""
    t.base = t.origin = 0
    t.x, t.y = &o.x, &o.y
    t.dy = NULL if o.dy.data == NULL else &o.dy
    t.source = t.x if t.dy == NULL else t.dy
    t.direct = o.x.direct and o.dy.direct and o.y.direct
    t.stored = o.x.dtype if t.direct else t.dtype
    t.room = room(o.x.turned or o.dy.turned or o.y.turned, t.dtype)


# Coefficients


cdef inline void set_typed(
    Channels* t, real* row, Py_ssize_t first, Py_ssize_t n, Py_ssize_t group, const double* values
) noexcept nogil:
    """Of n groups of so many channels, from group `first` on, as often as they come in a row."""
    cdef Py_ssize_t inner = t.inner * group, start = first * inner, i, j
    cdef real value
    while start < t.apart:
        if inner == 1:
            for i in range(min(n, t.apart - start)):
                row[start + i] = <real> values[i]
        else:
            for i in range(min(n, ceil_div(t.apart - start, inner))):
                value = <real> values[i]
                for j in range(start + i * inner, min(start + (i + 1) * inner, t.apart)):
                    row[j] = value
        start += t.c * t.inner


cdef inline void set_of_groups(
    Channels* t, Coefficient row, Py_ssize_t first, Py_ssize_t n, Py_ssize_t group,
    const double* values,
) noexcept nogil:
    """The same for all channels of each group."""
    if t.dtype == FLOAT32:
        set_typed(t, <float*> t.coefficients + row * t.apart, first, n, group, values)
    else:
        set_typed(t, <double*> t.coefficients + row * t.apart, first, n, group, values)


cdef inline void set_coefficients(
    Channels* t, Coefficient row, Py_ssize_t channel, Py_ssize_t n, const double* values
) noexcept nogil:
    """The same for all columns of each channel."""
    set_of_groups(t, row, channel, n, 1, values)


cdef inline void high_parts(
    Channels* t, Py_ssize_t n, const double* mean, double* high
) noexcept nogil:
    """The means to the digits of x's type; in place, if these are all that is wanted."""
    cdef Py_ssize_t i
    for i in range(n):
        high[i] = <double> <float> mean[i] if t.dtype == FLOAT32 else mean[i]


# What runs are mapped by


cdef inline sixteen.RunMap run_map(Channels* t) noexcept nogil:
    if t.map == SCALE_SHIFT:
        return sixteen.SCALE if t.linear else sixteen.SCALE_SHIFT
    if t.linear:
        return sixteen.SLOPE
    return sixteen.GRADIENT if t.map == GRADIENT else sixteen.WEIGHTED_GRADIENT


cdef inline Coefficient run_scale(Channels* t) noexcept nogil:
    """The scale of all of it; SCALE is the weight of dy if there is one."""
    return INVERSE if t.map == WEIGHTED_GRADIENT else SCALE


# The second path


cdef inline bint rescue_channels(
    Channels* t, Py_ssize_t channel, Py_ssize_t channels, bint centred, double eps,
    double* mean, double* var, double* rstd,
) noexcept nogil:
    """`rescue` for the n planes of some channels, taken as one."""
    cdef Extent planes
    planes.first, planes.step = t.base + channel * t.s, t.c * t.s
    planes.planes, planes.s = t.n, channels * t.s
    return rescue(t.x, planes, centred, eps, mean, var, rstd)


cdef inline bint rescue_channel(
    Channels* t, Py_ssize_t channel, bint centred, double eps,
    double* mean, double* var, double* rstd,
) noexcept nogil:
    return rescue_channels(t, channel, 1, centred, eps, mean, var, rstd)


# The samples


cdef inline void move_to_sample(Channels* t, Py_ssize_t sample) noexcept nogil:
    cdef Py_ssize_t partials = sample * t.grid.ranges * t.width
    t.sample, t.base = sample, sample * t.n * t.c * t.s
    t.origin = t.base
    t.first, t.second = t.first + partials, t.second + partials
    t.coefficients = <char*> t.coefficients + (
        sample * COEFFICIENTS * t.apart * itemsize_of(t.dtype)
    )


cdef inline Channels* at_sample(Channels* t, Py_ssize_t sample, Channels* copies) noexcept nogil:
    """The view of one sample, in `copies`, room for two of them, with that which is mapped."""
    if t.batch == 1:
        return t
    copies[0] = t[0]
    move_to_sample(copies, sample)
    if t.mapped != NULL:
        copies[1] = t.mapped[0]
        move_to_sample(copies + 1, sample)
        copies.mapped = copies + 1
    return copies


cdef inline Channels* mapped_view(Channels* t) noexcept nogil:
    return t if t.mapped == NULL else t.mapped


# A tile of planes that a block reads as a whole, into scratch memory: what is not computed from
# where it is, is converted once, not for the sums and again for the map.


cdef struct Tile:
    Channels reduced
    Channels mapped
    Operand x
    Operand dy


cdef inline Py_ssize_t tile_step(Channels* t, Block b) noexcept nogil:
    """Elements from one sample of a tile to the next in scratch memory."""
    return padded((b.last_channel - b.first_channel) * t.s)


cdef inline bint is_read_whole(Channels* t, Block b) noexcept nogil:
    cdef bint is_apart = not t.x.direct and not t.x.turned
    if t.dy != NULL:
        is_apart = is_apart and not t.dy.direct and not t.dy.turned
    return is_apart and t.planes and mapped_view(t).planes and (
        t.n * tile_step(t, b) * itemsize_of(t.dtype) <= BLOCK
    )


cdef inline void read_planes(
    Channels* t, const Operand* o, Block b, real* to, Operand* copy
) noexcept nogil:
    cdef Py_ssize_t n = (b.last_channel - b.first_channel) * t.s
    cdef Py_ssize_t sample, index = t.base + b.first_channel * t.s, stride
    copy.direct, copy.dtype, copy.data = True, t.dtype, <char*> to
    for sample in range(t.n):
        load_block(o, index + sample * t.c * t.s, n, 1, n, to + sample * tile_step(t, b), &stride)


cdef inline void use_tile(Channels* t, Block b, Tile* tile) noexcept nogil:
    t.origin = -b.first_channel * tile.reduced.s
    t.plane_step = tile_step(&tile.reduced, b)
    t.source = &tile.x if t.source == t.x else &tile.dy
    t.x = &tile.x
    if t.dy != NULL:
        t.dy = &tile.dy


cdef inline void read_tile(Channels* t, Block b, Tile* tile) noexcept nogil:
    cdef Scratch scratch = of_this_thread(t.scratch)
    tile.reduced, tile.mapped = t[0], mapped_view(t)[0]
    if t.dtype == FLOAT32:
        read_planes(t, t.x, b, <float*> nth(scratch, 0), &tile.x)
        if t.dy != NULL:
            read_planes(t, t.dy, b, <float*> nth(scratch, 1), &tile.dy)
    else:
        read_planes(t, t.x, b, <double*> nth(scratch, 0), &tile.x)
        if t.dy != NULL:
            read_planes(t, t.dy, b, <double*> nth(scratch, 1), &tile.dy)
    use_tile(&tile.reduced, b, tile)
    use_tile(&tile.mapped, b, tile)
