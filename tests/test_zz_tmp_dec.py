def test_x(tiny_decoder):
    import os, torch, json
    from transformers import AutoTokenizer, AutoModelForCausalLM, AutoModel
    print(os.listdir(tiny_decoder)); print(open(tiny_decoder+"/config.json").read()); print(open(tiny_decoder+"/tokenizer_config.json").read())
    t=AutoTokenizer.from_pretrained(tiny_decoder); print(type(t), t.padding_side, t.bos_token,t.eos_token,t.pad_token,t.eos_token_id,t.pad_token_id,len(t))
    for s in ["buy the red shoe","zürich 的一是 9","龘",""]:
        i=t(s)["input_ids"]; print(i,t.convert_ids_to_tokens(i),repr(t.decode(i)))
        assert t.decode(i)==s
    print(t.apply_chat_template([{"role":"user","content":"hi"}],tokenize=False,add_generation_prompt=True))
    i=t.apply_chat_template([{"role":"user","content":"hi"}]); print(i)
    m=AutoModelForCausalLM.from_pretrained(tiny_decoder); print(sum(p.double().abs().sum().item() for p in m.parameters()), m.model.rotary_emb, m.lm_head.weight is m.model.embed_tokens.weight)
    AutoModel.from_pretrained(tiny_decoder)
