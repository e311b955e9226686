// Speed of single kernels on one thread: kernel_probe [isa] [repeats] [cached]. Best of many; for looking at kernels, not for tables.
#include <chrono>

#include "testing.h"
#include "util/aligned.h"

using namespace hw;
using namespace hwt;

static double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

static void one(const Kernels& kn, Format f, size_t rows, size_t k, size_t t, int repeats) {
  const FormatInfo& fi = info(f);
  Arena w(packed_bytes(fi, rows, k)), q(t * k), fl(t * k * 4), sc(t * k / 8), s32(t * k / 8), s16(t * k / 4), c((t + kWideTokens) * 256), y(rows * 16 + 256), wide((t + kWideTokens) * wide_stride(k) * 2);
  Random r(1);
  for (size_t i = 0; i < w.size() / 8; i++) w.as<uint64_t>()[i] = r.bits() & 0x3fff3fff3fff3fffull;
  for (size_t i = 0; i < t * k; i++) fl.as<float>()[i] = r.normal();
  Acts a{k, fl.as<float>(), q.as<int8_t>(), sc.as<float>(), s32.as<int32_t>(), s16.as<int32_t>()};
  a.wide = wide.as<uint16_t>(), a.wide_stride = wide_stride(k);
  kn.widen(a.f, k, t, k, a.wide, a.wide_stride);
  kn.quantize(a.f, k, t, k, a.q, a.scale, a.sum32, a.sum16, k);
  double best = 1e9, bestv = 1e9;
  const size_t gb = group_bytes(fi, k);
  for (int rep = 0; rep < repeats; rep++) {
    double t0 = now();
    for (size_t g = 0; g + 4 <= rows / 16; g += 4) {
      const uint8_t* four[4] = {w.data() + g * gb, w.data() + (g + 1) * gb, w.data() + (g + 2) * gb, w.data() + (g + 3) * gb};
      kn.panel(f, four, a, 0, t, c.as<float>());
    }
    best = std::min(best, now() - t0);
    t0 = now();
    for (size_t g = 0; g + kStreams <= rows / 16; g += kStreams) {
      Streams io;
      io.count = kStreams;
      for (size_t s = 0; s < kStreams; s++) {
        io.at[s] = w.data() + (g + s) * gb;
        io.next[s] = w.data() + (g + s + (g + 2 * kStreams <= rows / 16 ? kStreams : 0)) * gb;
      }
      kn.matvec(f, io, a, 0, 1, y.as<float>() + 16 * g, rows);
    }
    bestv = std::min(bestv, now() - t0);
  }
  printf("%-8s %-5s %zux%zu: panel T=%zu %.1f GMAC/s; matvec %.1f GB/s\n", kn.name, fi.name, rows, k, t,
         double(t) * double(rows) * double(k) / best / 1e9, double(w.size()) / bestv / 1e9);
}

int main(int argc, char** argv) {
  const Kernels& kn = select_kernels(argc > 1 ? argv[1] : "");
  const int repeats = argc > 2 ? atoi(argv[2]) : 5;
  if (argc > 3) {  // a matrix that stays in L2: what the streaming kernels could do with endless bandwidth
    for (Format f : {Format::Q4_0, Format::Q8_0, Format::Q4_K, Format::Q5_K, Format::Q6_K, Format::F16}) one(kn, f, 256, 1024, 4, repeats);
    return 0;
  }
  for (Format f : {Format::Q4_0, Format::Q8_0, Format::Q4_K, Format::Q5_K, Format::Q6_K, Format::F16, Format::F32}) {
    one(kn, f, 4608, 1024, 512, repeats);
    one(kn, f, 1024, 4608, 512, repeats);
  }
}
