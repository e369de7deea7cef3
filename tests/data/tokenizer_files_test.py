"""Files of tokenizers that cannot be right are told before the library makes something of them."""

import gzip
import json
import resource
import time

import pytest
import small_bpe
import small_qwen

from vargrl.data import clip_bpe, scenes_tokenizer, text, tokenizer_rules


@pytest.fixture
def folder(tmp_path):
  """A folder of a tokenizer, with tokenizer.json beside vocab.json."""
  small_qwen.write(tmp_path)
  text.load(tmp_path).backend.save(str(tmp_path / 'tokenizer.json'))
  return tmp_path


def change(path, edit):
  value = json.loads(path.read_text())
  edit(value)
  path.write_text(json.dumps(value))


def refused(folder, words):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(ValueError, match=words) as error:
    text.encode(text.load(folder), 'a' * 30 + 'b')
  assert '\n' not in str(error.value) and str(folder) in str(error.value)
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


@pytest.mark.parametrize('number', [2**31, -1, 2**63, 1.5, '7', None, True, 2**24])
def test_an_id_that_no_vocabulary_has_is_told(folder, number):
  words = r'token .* has id .*, one of 0 to 16777215 expected'
  change(folder / 'tokenizer.json', lambda x: x['model']['vocab'].update(a=number))
  refused(folder, f'tokenizer.json: {words}')
  (folder / 'tokenizer.json').unlink()
  change(folder / 'vocab.json', lambda x: x.update(a=number))
  refused(folder, f'vocab.json: {words}')


def test_an_id_of_an_added_token_is_told(folder):
  change(folder / 'tokenizer.json', lambda x: x['added_tokens'][0].update(id=2**31))
  refused(folder, 'tokenizer.json: token .* has id 2147483648')
  (folder / 'tokenizer.json').unlink()
  for number in ('9' * 5000, '-1', '1e3', '', '٣'):
    change(
      folder / 'tokenizer_config.json',
      lambda x: x.update(added_tokens_decoder={number: {'content': 'x'}}),
    )
    refused(folder, 'tokenizer_config.json: token .* has id')


@pytest.mark.parametrize('key', ['chat_template', 'added_tokens_decoder'])
def test_null_is_absent(folder, key):
  change(folder / 'tokenizer_config.json', lambda x: x.update({key: None}))
  ours = text.load(folder)
  assert ours.template == text.CHATML and text.encode(ours, text.TURN_END).size == 1


@pytest.mark.parametrize(
  'config, words',
  [
    ({'chat_template': 3}, 'chat_template is a int, a text or a list'),
    ({'chat_template': [{'name': 'default'}]}, 'chat_template is a list'),
    ({'added_tokens_decoder': []}, None),
    ({'added_tokens_decoder': [1]}, 'added_tokens_decoder is a list, a dictionary expected'),
    ({'added_tokens_decoder': {'1': None}}, "added token '1' has no content"),
    ({'added_tokens_decoder': {'1': {'content': 5}}}, "added token '1' has no content"),
  ],
)
def test_a_config_of_other_types_is_told(folder, config, words):
  change(folder / 'tokenizer_config.json', lambda x: x.update(config))
  if words:
    refused(folder, words)
  else:
    text.load(folder)


def test_json_of_any_depth_is_told(folder):
  for name in ('tokenizer.json', 'tokenizer_config.json', 'chat_template.json'):
    old = (folder / name).read_text() if (folder / name).exists() else '{}'
    (folder / name).write_text('[' * 100_000)
    refused(folder, f'{name}: JSON nested too deeply')
    (folder / name).write_text(old)
  (folder / 'tokenizer.json').unlink()
  (folder / 'vocab.json').write_text('[' * 100_000)
  refused(folder, 'vocab.json: JSON nested too deeply')


def test_a_thread_of_the_library_that_ends_is_a_sentence(folder):
  split = {'type': 'Split', 'behavior': 'Isolated', 'invert': False}
  pattern = {'pre_tokenizer': split | {'pattern': {'Regex': '(a+)+$'}}}
  change(folder / 'tokenizer.json', lambda x: x.update(pattern))
  refused(folder, 'its tokenizer cannot encode the text')


def replace(pattern, content):
  return {'type': 'Replace', 'pattern': pattern, 'content': content}


@pytest.mark.parametrize(
  'part, rule, words',
  [
    ('normalizer', [replace({'String': 'a'}, 'aa')] * 30, 'times as long a text'),
    ('normalizer', [replace({'Regex': ''}, 'a')] * 30, 'times as long a text'),
    ('normalizer', [replace({'Regex': '(?<=a)'}, 'a' * 500)], '501 times as long a text'),
    ('decoder', [replace({'String': 'a'}, 'a' * 9)] * 3, '729 times as long a text'),
    (
      'normalizer',
      [{'type': 'Prepend', 'prepend': 'a' * 600}] * 2,
      '1200 characters that are added',
    ),
    ('pre_tokenizer', [{'type': 'Split', 'pattern': {'Regex': r'\p{L}' * 5000}}], 'of regular exp'),
    ('post_processor', [{'type': 'X', 'single': [{'Sequence': {}}] * 100}], 'characters that are'),
    ('normalizer', [{'type': 'NFC'}] * 2000, '2001 rules'),
    (
      'normalizer',
      [{'type': 'P', 'precompiled_charsmap': '/////w=='}],
      'precompiled_charsmap is cut',
    ),
  ],
)
def test_rules_that_make_much_of_a_short_text_are_told(folder, part, rule, words):
  change(folder / 'tokenizer.json', lambda x: x.update({part: {'type': 'Sequence', 'x': rule}}))
  refused(folder, f'tokenizer.json: .*{words}')


def test_rules_of_published_tokenizers_are_read(tmp_path):
  for rules in (
    [{'type': 'Prepend', 'prepend': '▁'}, replace({'String': ' '}, '▁')],
    [replace({'Regex': ' {2,}'}, '▁'), {'type': 'NFC'}, {'type': 'Lowercase'}],
    [replace({'Regex': r'\s+|\p{L}'}, ' ')] * 20 + [replace({'Regex': '(?i:x)y'}, 'zz')],
    [replace({'String': x}, x * 2) for x in 'ab'],
  ):
    tokenizer_rules.check('x', {'normalizer': {'type': 'Sequence', 'normalizers': rules}})
  text.save(scenes_tokenizer.build(), tmp_path)
  assert text.load(tmp_path).backend.get_vocab_size()


def test_half_of_a_surrogate_pair_is_a_sentence(folder):
  with pytest.raises(ValueError, match=r"half of a surrogate pair .'.ud83d'. found"):
    text.encode(text.load(folder), 'a\ud83d')


def test_thousands_of_added_tokens_take_no_longer_than_they_need(folder):
  """As many as Emu3's visual tokens: one at a time, they would take a quarter of an hour."""
  first = text.load(folder).backend.get_vocab_size()
  flags = {'special': True, 'normalized': False}
  more = {str(first + i): {'content': f'<v{i}>', **flags} for i in range(30_000)}
  change(folder / 'tokenizer_config.json', lambda x: x['added_tokens_decoder'].update(more))
  began = time.perf_counter()
  ours = text.load(folder)
  assert text.encode(ours, '<v29999>').tolist() == [first + 29_999]
  assert text.decode(ours, [first]) == '' and time.perf_counter() - began < 20


def test_openais_file_is_unpacked_as_far_as_it_may_be(tmp_path):
  path = tmp_path / 'bpe_simple_vocab_16e6.txt.gz'
  path.write_bytes(gzip.compress(bytes(2**25)))
  with pytest.raises(ValueError, match='txt.gz: more than 16777216 bytes of text in it'):
    clip_bpe.encode(path, ['a'])
  small_bpe.write(tmp_path)
  whole = path.read_bytes()
  for content in (whole[:-9], whole[:30], b'abc', b'x' + whole):
    path.write_bytes(content)
    with pytest.raises(ValueError, match='txt.gz: '):
      clip_bpe.encode(path, ['a'])
