"""Scaled dot-product attention as one operator that streams keys and values through the scratchpad.

The IR operator ``Attention`` (a `lowering.ir.Node` with ``op="Attention"``) means what ONNX operator set 23 says:
``softmax(scale * Q K^T + mask) V`` for every head, each group of query heads sharing one key/value head.

Inputs, by position; absent optional ones are None:

====  ==========  ===========================================================================================
0     Q           (batch, q_heads, q_len, head) or (batch, q_len, q_heads * head)
1     K           (batch, kv_heads, new_len, head) or (batch, new_len, kv_heads * head)
2     V           (batch, kv_heads, new_len, v_head) or (batch, new_len, kv_heads * v_head)
3     mask        optional; broadcasts to (batch, q_heads, q_len, past_len + new_len), boolean or added; it is read
                  from memory unless it has a single element
4     past_key    optional, with 5: (batch, kv_heads, past_len, head)
5     past_value  (batch, kv_heads, past_len, v_head)
====  ==========  ===========================================================================================

Outputs: 0 Y, of Q's form with v_head in the place of head; optional, both or neither: 1 present_key
(batch, kv_heads, past_len + new_len, head) and 2 present_value (the same with v_head).

Attributes: ``q_num_heads``, ``kv_num_heads`` (int; required where Q or K, V have three dimensions, otherwise read from
the shapes); ``is_causal`` (int, default 0: query i sees keys 0 .. past_len + i); ``scale`` (float, without influence on
time); ``softcap`` (float, default 0: none; otherwise a tanh for each score). Beyond ONNX: ``window`` (int, default 0:
none; otherwise a query sees only the last ``window`` of the keys up to its own position, as in a sliding window).

The cache: present_key and past_key share memory, in the layout of present_key, and so do the values, when the past is
an input of the graph: new rows are appended in place, which writes new_len rows for each key/value head, and the past
is read where it lies. A past that another operator computes is copied into the present first. Without present outputs
nothing is written. Decoding one token at context 4096 is q_len = new_len = 1 with past_len = 4095 (or 4096).
"""
