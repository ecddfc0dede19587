"""Results in large pages: fresh memory costs a fault for each, which in small ones takes as long as all the rest.

Beyond 32 MiB glibc gives memory back to the system with each result, so that all of it is fresh at each call.  Linux
uses large pages where a program asks for them; the request changes no results, and where it is refused nothing happens.
"""

LARGEST_KEPT = 2**25  # bytes

LARGE_PAGES = f"""#ifdef __linux__
#include <sys/mman.h>
#endif
static void use_large_pages(void *memory, int64_t bytes)
{{
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  enum {{ PAGE = 4096 }};
  if (bytes <= {LARGEST_KEPT}) return;
  const uintptr_t begin = ((uintptr_t)memory + PAGE - 1) / PAGE * PAGE, end = (uintptr_t)memory + bytes;
  madvise((void *)begin, (end - begin) / PAGE * PAGE, MADV_HUGEPAGE);
#endif
}}
"""
