#include <algorithm>

#include "text/text.h"

namespace hw::text {

Pairs find_bags(const int64_t* rows, const int64_t* begins, const int64_t* ends, size_t chunks, const Postings& keys, int32_t least, const int32_t* needed) {
  Pairs found;
  std::vector<int64_t> seen(keys.rows, -1);  // the chunk that a row was last seen in
  std::vector<int32_t> sums(keys.items, 0);
  std::vector<int32_t> touched;
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    for (int64_t at = begins[chunk]; at < ends[chunk]; ++at) {
      const int64_t row = rows[at];
      if (seen[row] == int64_t(chunk)) continue;
      seen[row] = int64_t(chunk);
      for (int64_t p = keys.starts[row]; p < keys.starts[row + 1]; ++p) {
        int32_t& sum = sums[keys.item[p]];
        if (sum == 0) touched.push_back(keys.item[p]);
        sum += keys.value[p];
      }
    }
    const size_t before = found.second.size();
    for (const int32_t item : touched) {
      if (sums[item] >= least && sums[item] % kOneKey >= needed[item]) found.second.push_back(item);
      sums[item] = 0;
    }
    touched.clear();
    std::sort(found.second.begin() + int64_t(before), found.second.end());
    found.first.resize(found.second.size(), int64_t(chunk));
  }
  return found;
}

}  // namespace hw::text
