"""Chat templates are transformers' in what they write, and bounded in what they cost."""

import datetime
import time
import tracemalloc

import pytest
import small_qwen

from vargrl.data import chat_template, text

TALK = [
  {'role': 'user', 'content': 'hello world'},
  {'role': 'assistant', 'content': ' a cat\n'},
]
# As in the templates of Llama 3.1 and of SmolLM3, shortened.
LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if tools is not none %}{{- "tools\\n" }}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim }}
    {{- eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
GENERATION = """{% macro turn(m) %}{{ m.content }}{% endmacro %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
<|im_start|>assistant
{% generation %}{{ turn(m) }}<|im_end|>{% endgeneration %}

{% else %}
<|im_start|>{{ m.role }}
{{ turn(m) }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
END = {'__type': 'AddedToken', 'content': '<|im_end|>', 'special': True}
SPECIAL = {'bos_token': '<s>', 'eos_token': END}
SLOW = '{% for i in range(99999) %}'
COSTLY = {
  'a product': "{{ 'a' * 10**9 }}",
  'a long list': '{{ [1] * 10**9 }}',
  'a long loop': '{% for i in range(10**9) %}{% endfor %}',
  'loops in loops': f'{SLOW}{SLOW}x{{% endfor %}}{{% endfor %}}',
  'texts that double': "{% set n=namespace(x='ab') %}"
  + '{% for i in range(99) %}{% set n.x=n.x~n.x %}{% endfor %}',
  'sums that double': "{% set x='ab' %}" + '{% set x=x+x %}' * 40,
  'blocks that double': '{% set x %}ab{% endset %}' + '{% set x %}{{x}}{{x}}{% endset %}' * 40,
  'lists that double': '{% set x=[1] %}' + '{% set x=[x,x] %}' * 60 + '{{ x }}',
  'dictionaries that double': '{% set x={} %}' + '{% set x=dict(a=x,b=x) %}' * 60 + '{{ x }}',
  'macros in macros': '{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}'
  '{{ f(60) }}',
  'a macro without end': '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}',
  'a loop without end': '{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}',
  'center': "{{ 'a'|center(10**9) }}",
  'a constant': "{{ 'a'|center(999999999) }}",
  'a method': "{{ 'a'.rjust(10**9) }}",
  'a format': "{{ '%1000000000d' % 1 }}",
  'a format of braces': "{{ '{:1000000000}'.format(1) }}",
  'a width': "{{ '{:{}}'.format(1, 10**9) }}",
  'replace': "{{ ('a' * 10**6).replace('a', 'b' * 10**4) }}",
  'join': "{{ (['a'] * 10**5)|join('b' * 10**4) }}",
  'a power': '{{ 10 ** (10 ** 10) }}',
  'sums of lists': '{{ ([[1]] * 10**5)|sum(start=[]) }}',
  'batch': "{{ [1]|batch(10**9, 'x')|list }}",
  'round': "{{ 1.5|round(10**9, 'ceil') }}",
  'comparisons': "{% set a='a'*10**6 %}{% set b='a'*10**6 %}" + SLOW + '{{ a == b }}{% endfor %}',
  'filters of long lists': SLOW + "{{ range(99999)|select('odd')|sum }}{% endfor %}",
  'a long text': '{{ messages|tojson(indent=99999) }}',
  'nesting': '{{ ' + '[' * 5000 + ']' * 5000 + ' }}',
  'many statements': '{% set a=1 %}' * 10**5,
}


@pytest.mark.parametrize('what', COSTLY)
def test_a_template_that_would_cost_much_is_refused_soon(what, monkeypatch):
  monkeypatch.setattr(chat_template, 'MAX_WEIGHT', 2**19)
  began = time.perf_counter()
  tracemalloc.start()
  try:
    with pytest.raises(ValueError) as error:
      chat_template.render(COSTLY[what], TALK)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert len(str(error.value)) < 400 and '\n' not in str(error.value)
  assert peak < 2**26 and time.perf_counter() - began < 20


def test_what_templates_do_with_long_dialogues_is_within_the_bound():
  talk = [{'role': 'user', 'content': 'word ' * 400}] * 300
  both = '{% set n = namespace(x="", last=0) %}{% for m in messages %}{% for k in messages[::-1] %}'
  both += '{% if k.role == "tool" %}{% break %}{% endif %}{% endfor %}'
  both += '{% set n.x = n.x ~ m.content|trim|replace("word", "words") %}{% endfor %}{{ n.x }}'
  assert len(chat_template.render(both, talk)) == 300 * (400 * 6 - 1)
  assert 'not defined' in chat_template.render('{{ x is defined or "not defined" }}', talk)


@pytest.mark.parametrize('template', [LLAMA, GENERATION, text.CHATML, small_qwen.BLOCKS])
def test_real_templates_write_what_transformers_writes(template, tmp_path):
  small_qwen.write(tmp_path, template, **SPECIAL)
  ours = text.load(tmp_path)
  assert ours.special['bos_token'] == '<s>' and ours.special['eos_token'] == '<|im_end|>'
  text.save(ours, tmp_path / 'again')
  assert text.load(tmp_path / 'again').special == ours.special
  transformers = pytest.importorskip('transformers')
  theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
  for answer in (False, True):
    expected = theirs.apply_chat_template(
      TALK, chat_template=template, tokenize=False, add_generation_prompt=answer
    )
    assert text.render(ours, TALK, answer=answer) == expected


def test_special_tokens_dates_and_blocks_of_what_is_said(tmp_path):
  small_qwen.write(tmp_path, LLAMA, **SPECIAL)
  out = text.render(text.load(tmp_path), TALK[:1], answer=True)
  date = datetime.datetime.now().strftime('%d %b %Y')
  assert out.startswith('<s><|start_header_id|>system') and f'Today Date: {date}\n' in out
  assert 'hello world<|im_end|>' in out and 'tools' not in out
  small_qwen.write(tmp_path, GENERATION)
  ours = text.load(tmp_path)
  ids, mask = text.encode_dialogue(ours, TALK)
  assert text.decode(ours, ids[mask], special=True) == ' a cat\n<|im_end|>'


def test_texts_alone_are_said_to_be_expected_where_a_picture_is_not(tmp_path):
  small_qwen.write(tmp_path, "{{ 'a' + messages[0]['content'] }}")
  with pytest.raises(ValueError, match=r'refuses 1 messages \(TypeError.*it may take texts alone'):
    text.render(text.load(tmp_path), small_qwen.DIALOGUES[2][:1], answer=False)
