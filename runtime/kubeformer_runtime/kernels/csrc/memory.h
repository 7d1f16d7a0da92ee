// Large zeroed memory in huge pages where the kernel has them, given back in full when it is freed.
#pragma once
#include <cstddef>
#include <cstdint>
#include <new>
#include <sys/mman.h>

namespace kf {

class Memory {
  public:
    Memory() = default;
    explicit Memory(size_t bytes) : bytes_(round_up(bytes)) {
        if (!bytes) { bytes_ = 0; return; }
        char* got = static_cast<char*>(mmap(nullptr, bytes_ + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (got == MAP_FAILED) throw std::bad_alloc();
        char* start = reinterpret_cast<char*>(round_up(reinterpret_cast<uintptr_t>(got)));
        if (start > got) munmap(got, size_t(start - got));  // keep what begins at a huge page
        if (start < got + HUGE) munmap(start + bytes_, size_t(got + HUGE - start));
        if (bytes_ >= 2 * HUGE) madvise(start, bytes_, MADV_HUGEPAGE);
        start_ = start;
    }
    Memory(Memory&& other) noexcept { swap(other); }
    Memory& operator=(Memory&& other) noexcept { swap(other); return *this; }
    Memory(const Memory&) = delete;
    ~Memory() { if (start_) munmap(start_, bytes_); }

    template <class T> T* as() const { return reinterpret_cast<T*>(start_); }
    size_t bytes() const { return bytes_; }

  private:
    static constexpr size_t HUGE = size_t(2) << 20;
    static size_t round_up(size_t n) { return (n + HUGE - 1) / HUGE * HUGE; }
    void swap(Memory& other) { std::swap(start_, other.start_); std::swap(bytes_, other.bytes_); }
    char* start_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace kf
