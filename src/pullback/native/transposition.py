"""Blocks of eight by eight numbers transposed in vectors: between samples side by side, and entries side by side."""

_SHUFFLES = (
    # Pairs of rows, pairs of pairs, halves: where each vector's numbers come from, out of two.
    ("a", "v", ((0, 1), (2, 3), (4, 5), (6, 7)), (0, 8, 2, 10, 4, 12, 6, 14), (1, 9, 3, 11, 5, 13, 7, 15)),
    ("b", "a", ((0, 2), (1, 3), (4, 6), (5, 7)), (0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15)),
    ("c", "b", ((0, 4), (1, 5), (2, 6), (3, 7)), (0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)),
)


def transposition(kind: str) -> str:
    """A function in C that transposes a block of numbers of a C type, whose rows lie so many numbers apart.

    Compilers without shuffles of vectors take a loop.
    """
    size = {"double": 64, "float": 32}[kind]
    lines = [
        f"typedef {kind} vector_{kind} __attribute__((vector_size({size}), aligned({size // 8}), may_alias));",
        f"static inline void transpose_{kind}(const {kind} *from, int64_t apart, {kind} *to, int64_t step)",
        "{",
        "#if __has_builtin(__builtin_shufflevector)",
        *(f"  const vector_{kind} v{k} = *(const vector_{kind} *)(from + {k} * apart);" for k in range(8)),
    ]
    for new, old, pairs, low, high in _SHUFFLES:
        for first, second in pairs:
            for name, order in ((f"{new}{first}", low), (f"{new}{second}", high)):
                places = ", ".join(map(str, order))
                shuffled = f"__builtin_shufflevector({old}{first}, {old}{second}, {places})"
                lines.append(f"  const vector_{kind} {name} = {shuffled};")
    lines += [f"  *(vector_{kind} *)(to + {k} * step) = c{k};" for k in range(8)]
    lines += ["#else", "  for (int i = 0; i < 8; ++i)", "    for (int j = 0; j < 8; ++j)"]
    lines += ["      to[i * step + j] = from[j * apart + i];", "#endif", "}", ""]
    return "\n".join(lines)
