// Compiled once per instruction set: HW_NS names it, the compiler flags allow it. Nothing here may use shared inline functions.
#include "kernels/kernels.h"
#include "simd/vec.h"

namespace hw::HW_NS {
namespace {
#include "kernels/fgemm.inl"
#include "kernels/quantize.inl"
#include "kernels/elementwise.inl"
#include "kernels/matvec.inl"
#include "kernels/matmul.inl"
#if defined(HW_AMX)
#include "kernels/amx.inl"
#endif
#include "kernels/short_conv.inl"
#include "kernels/attention.inl"

#define HW_TEXT_(x) #x
#define HW_TEXT(x) HW_TEXT_(x)
#if defined(HW_AMX)
constexpr bool kTiles = true;
constexpr auto kPanel = panel_wide;
#else
constexpr bool kTiles = false;
constexpr auto kPanel = panel;
#endif
constexpr Kernels kTable = {HW_TEXT(HW_NS), kTiles ? int(kWideTokens) : kTileTokens, kTiles, quantize, widen, matvec, kPanel, rms_norm, add, add_scaled,
                            gate, rotate, store_key, store_value, attention, short_conv, fgemm};
}  // namespace
const Kernels* table() { return &kTable; }
}  // namespace hw::HW_NS
