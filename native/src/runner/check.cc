// Does a program fit together? Asked once, before any memory is taken, so that the kernels can trust every size.
#include <string>

#include "runner/exec.h"
#include "util/error.h"

namespace hw {

namespace {

constexpr size_t kMost = size_t(1) << 24;  // rows of matrices, values of buffers: beyond, the chunks of an op have no number (Stages::plan)

struct Checker {
  const ProgramSpec& spec;
  size_t index = 0;
  std::string name;
  size_t routed = 0, chosen = 0;  // experts that the last route chooses among, and takes for a token

  void require(bool ok, const std::string& what) const { check(ok, "program: op " + std::to_string(index) + " (" + name + "): " + what); }

  const BufferSpec& buffer(int i, const char* what) const {
    require(i >= 0 && size_t(i) < spec.buffers.size(), std::string("no buffer ") + what);
    return spec.buffers[size_t(i)];
  }
  const Matrix& matrix(const Op& op, size_t i) const {
    require(i < op.matrices.size() && op.matrices[i] >= 0 && size_t(op.matrices[i]) < spec.matrices.size(), "no matrix " + std::to_string(i));
    return spec.matrices[size_t(op.matrices[i])];
  }
  void vector(int i, size_t n, bool may_miss, const char* what) const {
    if (i < 0) return require(may_miss, std::string("no vector ") + what);
    require(size_t(i) < spec.vectors.size() && spec.vectors[size_t(i)].size() == n,
            std::string(what) + ": a vector of " + std::to_string(n) + " values is needed" +
                (size_t(i) < spec.vectors.size() ? ", this one has " + std::to_string(spec.vectors[size_t(i)].size()) : ""));
  }
  void floats(const BufferSpec& b) const { require(b.floats, "buffer " + b.name + " must hold floats"); }
  void width(const BufferSpec& b, size_t n) const {
    require(b.width == n, "buffer " + b.name + " is " + std::to_string(b.width) + " wide, " + std::to_string(n) + " is needed");
  }
  void feeds(const BufferSpec& b, const Matrix& m) const {
    width(b, m.k);
    require(info(m.format).act8 ? b.act8 : b.floats, "buffer " + b.name + " lacks the " + (info(m.format).act8 ? "int8" : "float") + " form that " +
                                                          info(m.format).name + " matrices need");
  }
  void pieces(const BufferSpec& out, size_t n) const { require(!out.act8 || n % 32 == 0, "pieces of " + std::to_string(n) + " do not fill blocks of 32"); }

  void matmul(const Op& op) const {
    const BufferSpec &in = buffer(op.in, "in"), &out = buffer(op.out, "out");
    require(!op.matrices.empty() && op.matrices.size() <= 4, "1 to 4 matrices");
    size_t rows = 0;
    for (size_t i = 0; i < op.matrices.size(); i++) feeds(in, matrix(op, i)), rows += matrix(op, i).rows, require(matrix(op, i).experts == 1, "experts");
    if (op.epilogue == Epilogue::gated) {
      require(op.matrices.size() == 2 && matrix(op, 0).rows == matrix(op, 1).rows && matrix(op, 0).format == matrix(op, 1).format,
              "a gated product needs two matrices of one shape and format");
      pieces(out, rows /= 2);
    } else {
      floats(out);
      require(!out.act8, "results are stored as floats only");
    }
    width(out, rows);
    require(in.selected == out.selected && in.copies == 1 && out.copies == 1, "rows of in and out differ");
  }

  void attention(const Op& op) const {
    require(op.layer < spec.state.attention.size(), "no attention state " + std::to_string(op.layer));
    const auto& st = spec.state.attention[op.layer];
    require(st.kv_heads == op.kv_heads && st.head_dim == op.head_dim, "heads differ from the state");
    require(op.kv_heads && op.heads % op.kv_heads == 0 && op.heads / op.kv_heads <= kAttentionRows, "query heads must be a multiple of key-value heads, at most " + std::to_string(kAttentionRows) + " times");
    const BufferSpec& in = buffer(op.in, "in");
    floats(in), width(in, (op.heads + 2 * op.kv_heads) * op.head_dim);
    if (op.kind == OpKind::rope) {
      require(op.pairs + op.pair_offset <= op.head_dim && (op.pairs <= op.pair_offset || !op.pairs), "pairs " + std::to_string(op.pairs) + " at offset " + std::to_string(op.pair_offset));
      if (op.pairs) floats(buffer(op.in2, "in2")), width(buffer(op.in2, "in2"), 2 * op.pairs);
      vector(op.vec, op.head_dim, true, "q norm"), vector(op.vec2, op.head_dim, true, "k norm");
      return;
    }
    const BufferSpec& out = buffer(op.out, "out");
    width(out, op.heads * op.head_dim), pieces(out, op.heads / op.kv_heads * op.head_dim);
    if (op.in2 >= 0) floats(buffer(op.in2, "in2")), width(buffer(op.in2, "in2"), op.heads);
  }

  void convolution(const Op& op) const {
    require(op.layer < spec.state.convolution.size(), "no convolution state " + std::to_string(op.layer));
    const auto& st = spec.state.convolution[op.layer];
    const BufferSpec &in = buffer(op.in, "in"), &out = buffer(op.out, "out");
    floats(in), width(in, 3 * st.d), width(out, st.d), pieces(out, st.d);
    vector(op.vec, st.width * st.d, false, "taps"), vector(op.vec2, st.d, true, "bias");
  }

  void experts(const Op& op) {
    const BufferSpec& in = buffer(op.in, "in");
    if (op.kind == OpKind::route) {
      const BufferSpec& logits = buffer(op.in2, "in2");
      floats(logits), vector(op.vec, logits.width, true, "expert bias");
      routed = logits.width, chosen = op.top_k;
      return require(chosen >= 2 && chosen <= routed, std::to_string(chosen) + " experts a token; allowed: 2 to " + std::to_string(routed));
    }
    const BufferSpec& out = buffer(op.out, "out");
    if (op.kind == OpKind::gather) {
      width(out, in.width);
      return require((!out.act8 || in.act8) && (!out.floats || in.floats) && routed && out.copies == chosen, "gather");
    }
    if (op.kind == OpKind::combine) return floats(in), floats(out), width(out, in.width), require(in.copies == op.top_k && op.top_k == chosen, "copies");
    const Matrix& m = matrix(op, 0);
    feeds(in, m), width(out, m.rows);
    require(in.copies == out.copies && in.copies == chosen, "copies differ");
    require(m.experts == routed, "matrices of " + std::to_string(m.experts) + " experts behind a router of " + std::to_string(routed) + "; the file is damaged or not of this model");
    if (op.kind == OpKind::moe_up)
      require(matrix(op, 1).rows == m.rows && matrix(op, 1).format == m.format && matrix(op, 1).k == m.k && matrix(op, 1).experts == m.experts, "gate and up differ"), pieces(out, m.rows);
    else
      floats(out), require(!out.act8, "results are stored as floats only");
  }

  void one(const Op& op) {
    switch (op.kind) {
      case OpKind::embed:
        name = "embed", floats(buffer(op.out, "out")), width(buffer(op.out, "out"), matrix(op, 0).k);
        require(matrix(op, 0).experts == 1, "a table of " + std::to_string(matrix(op, 0).experts) + " experts");
        break;
      case OpKind::angles: name = "angles", floats(buffer(op.out, "out")), width(buffer(op.out, "out"), 2 * op.pairs), vector(op.vec, op.pairs, false, "inverse frequencies"); break;
      case OpKind::norm: {
        name = "norm";
        const BufferSpec &in = buffer(op.in, "in"), &out = buffer(op.out, "out");
        floats(in), width(out, in.width), vector(op.vec, in.width, true, "weight"), pieces(out, in.width);
        require(op.epilogue != Epilogue::add || (out.floats && !out.act8), "adds to floats only");
        break;
      }
      case OpKind::bias: {
        name = "bias";
        const BufferSpec& out = buffer(op.out, "out");
        floats(out), require(!out.act8, "adds to floats only"), vector(op.vec, out.width, false, "bias");
        break;
      }
      case OpKind::matmul: name = "matmul", matmul(op); break;
      case OpKind::rope: name = "rope", attention(op); break;
      case OpKind::attention: name = "attention", attention(op); break;
      case OpKind::short_conv: name = "short_conv", convolution(op); break;
      case OpKind::select:
        name = "select", floats(buffer(op.in, "in")), width(buffer(op.out, "out"), buffer(op.in, "in").width);
        require(buffer(op.out, "out").selected, "out must be a buffer of selected rows"), pieces(buffer(op.out, "out"), buffer(op.out, "out").width);
        break;
      default: name = "experts", experts(op);
    }
  }
};

}  // namespace

void check_program(const ProgramSpec& spec) {
  check(spec.max_tokens >= 1 && spec.max_tokens <= 65536, "max_tokens: " + std::to_string(spec.max_tokens) + "; allowed: 1 to 65536");
  check(spec.max_selected >= 1 && spec.max_selected <= 65536, "max_selected: " + std::to_string(spec.max_selected) + "; allowed: 1 to 65536");
  check(!spec.ops.empty() && spec.ops[0].kind == OpKind::embed, "program: the first op must be embed");
  for (const BufferSpec& b : spec.buffers) {
    check(b.width <= kMost, "program: buffer " + b.name + " is " + std::to_string(b.width) + " wide; allowed: up to 2^24");
    check(b.width >= 1 && (b.floats || b.act8) && b.copies >= 1, "program: buffer " + b.name + " is empty");
    check(!b.act8 || b.width % 32 == 0, "program: int8 buffer " + b.name + " is " + std::to_string(b.width) + " wide; a multiple of 32 is needed");
  }
  for (const Matrix& m : spec.matrices) {
    check(m.data && m.rows && m.k && m.k % info(m.format).block == 0, "program: a matrix of " + std::to_string(m.rows) + " x " + std::to_string(m.k) + " in " + info(m.format).name);
    check(m.rows <= kMost && m.experts <= 65536 && m.rows * m.experts <= kMost,
          "program: a matrix of " + std::to_string(m.rows) + " rows for each of " + std::to_string(m.experts) + " experts; allowed: up to 2^24 rows in all");
  }
  Checker c{spec, 0, ""};
  for (const Op& op : spec.ops) c.one(op), c.index++;
  check(spec.logits < 0 || (size_t(spec.logits) < spec.buffers.size() && spec.buffers[size_t(spec.logits)].selected && spec.buffers[size_t(spec.logits)].floats),
        "program: logits must be a float buffer of selected rows");
}

}  // namespace hw
