"""Whole lines of memory put where results belong: past the caches where the results are larger than these.

A store to memory that is in no cache first reads its line; one that goes past the caches does not, and takes less than
half of the time.  But then a result that a cache could have held is read from memory: it pays from `STREAMED` bytes on.
"""

STREAMED = 2**23  # bytes; at 14 MB a program took 0.9 of its time, at 29 MB 0.6 of it
LINE = 64  # bytes

PUT_LINES = f"""typedef int64_t line __attribute__((vector_size({LINE}), aligned(8), may_alias));
#if defined(__x86_64__) && defined(__AVX512F__)
#define STREAM(to, from) __asm__("vmovntdq %1, %0" : "=m"(*(to)) : "v"(*(from)))
#define STREAMS 1
#else
#define STREAM(to, from) (*(to) = *(from))
#define STREAMS 0
#endif
static inline int streams(const void *to, int64_t bytes)
{{
  return STREAMS && bytes > {STREAMED} && (uintptr_t)to % {LINE} == 0;
}}
static inline void put_lines(void *to, const void *from, int64_t count, int streamed)
{{
  line *const target = to;
  const line *const source = from;
  if (streamed)
    for (int64_t k = 0; k < count; ++k) STREAM(target + k, source + k);
  else
    for (int64_t k = 0; k < count; ++k) target[k] = source[k];
}}
static inline void finish_streams(int streamed)
{{
#if STREAMS
  if (streamed) __asm__ volatile("sfence" ::: "memory");
#endif
}}
"""
