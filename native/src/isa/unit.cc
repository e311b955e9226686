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
#if defined(HW_AVX512)
#include "kernels/pack.inl"
#endif
#if defined(HW_AMX)
#include "kernels/amx.inl"
#include "kernels/amx_few.inl"
#endif
#include "kernels/short_conv.inl"
#include "kernels/attention.inl"
#if defined(HW_AMX)
#include "kernels/amx_attention.inl"
#endif

#define HW_TEXT_(x) #x
#define HW_TEXT(x) HW_TEXT_(x)
#if defined(HW_AVX512)
constexpr auto kPack = pack_sixteen;
#else
constexpr auto kPack = pack_groups;
#endif
#if defined(HW_AMX)
constexpr bool kTiles = true;
constexpr size_t kRowsOfAttention = kTileAttentionRows;
constexpr auto kMatvec = matvec_tiles;
constexpr auto kPanel = panel_wide;
constexpr auto kAttention = attention_tiles;
#else
constexpr bool kTiles = false;
constexpr size_t kRowsOfAttention = kAttentionRows;
constexpr auto kMatvec = matvec;
constexpr auto kPanel = panel;
constexpr auto kAttention = attention;
#endif
constexpr Kernels kTable = {HW_TEXT(HW_NS), kTiles ? int(kWideTokens) : kTileTokens, kRowsOfAttention, kTiles, quantize, widen, kMatvec, kPanel, rms_norm, sum_exp, add, add_scaled,
                            gate, rotate, store_key, store_value, kAttention, short_conv, fgemm, kPack};
}  // namespace
const Kernels* table() { return &kTable; }
}  // namespace hw::HW_NS
