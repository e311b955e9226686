// Tiles of sixteen rows of 64 bytes (AMX): numbered registers that only these statements touch. Written in assembly because gcc 12's
// intrinsics do not tell the compiler that they read memory.
#pragma once
#include <cstddef>
#include <cstdint>

namespace hw::HW_NS {

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// While one lives, the eight tiles of this thread have these shapes; afterwards the system need not save them any more.
struct Tiles {
  explicit Tiles(const TileShapes& shapes = TileShapes()) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
  ~Tiles() { asm volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;
};

template <int n>
HW_INLINE void tile_load(const void* p, size_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(n) : "memory");
}
template <int n>
HW_INLINE void tile_store(void* p, size_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(n) : "memory");
}
template <int n>
HW_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(n));
}
// tile c (fp32) += tile a (16 rows of 32 bfloat16) times tile b (16 pairs of rows, 16 columns)
template <int c, int a, int b>
HW_INLINE void tile_dot() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}
// tile c (int32) += tile a (rows of signed bytes) times tile b (fours of rows of signed bytes, 16 columns)
template <int c, int a, int b>
HW_INLINE void tile_dot_s8() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}

}  // namespace hw::HW_NS
