"""The board of the page in the browser: its HTML, its style, and the script that draws what Python says.

The script holds no state of its own but what is shown: every act goes to `serve.Work`, whose answer is drawn whole.
Texts of users are set as texts, never as HTML.
"""

HTML = """
<div class="board">
  <div class="bar">
    <label class="act main">Open a photograph
      <input class="open" type="file" accept="image/*,.tif,.tiff" aria-label="Open a photograph"></label>
    <button class="act undo" type="button" disabled>Undo</button>
    <button class="act compare" type="button" aria-pressed="false" disabled>Show the original</button>
    <span class="gap"></span>
    <button class="act main save" type="button" disabled>Save the picture</button>
    <label>as <select class="kind" aria-label="Format of the saved picture">
      <option value="png">PNG</option><option value="jpg">JPEG</option><option value="tif">TIFF</option>
    </select></label>
  </div>
  <p class="said" role="status" aria-live="polite"></p>
  <div class="desk">
    <div class="stage">
      <p class="empty">Drop a photograph here, or open one.<br><span class="takes"></span></p>
      <div class="frame" tabindex="0" role="application" hidden
        aria-label="Photograph. Click a point, or move with the arrow keys and press Enter, then choose a colour.">
        <img class="picture" alt="the photograph with the colours found"><div class="cross" hidden></div>
        <div class="marks"></div>
      </div>
    </div>
    <div class="side">
      <h2>Colour</h2>
      <p class="where">Open a photograph first.</p>
      <div class="offered" role="group" aria-label="Colours as bright as this point"></div>
      <label class="any" hidden>any colour <input class="free" type="color" aria-label="Any colour"></label>
      <div class="usedbox" hidden><h3>Used before</h3>
        <div class="used" role="group" aria-label="Colours used before"></div></div>
      <h2>Hints <span class="count"></span></h2>
      <p class="none">None yet.</p>
      <div class="bar"><label class="act small">Load
        <input class="load" type="file" accept=".csv,.json" aria-label="Load hints" disabled></label>
        <button class="act small savehints" type="button" aria-label="Save hints" disabled>Save</button>
        <button class="act small clear" type="button" aria-label="Remove all hints" disabled>Remove all</button></div>
      <table hidden><thead><tr><th>Colour</th><th>Came out</th><th>x</th><th>y</th><th></th></tr></thead>
        <tbody></tbody></table>
    </div>
  </div>
</div>
"""

STYLE = """
.board .bar { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center }
.board .gap { flex: 1 }
.board .act { font: inherit; font-size: .9rem; padding: .4rem .8rem; border-radius: 6px; cursor: pointer;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-secondary);
  color: var(--body-text-color); position: relative; overflow: hidden }
.board .act.small { font-size: .82rem; padding: .2rem .6rem }
.board .act:hover { border-color: var(--color-accent) }
.board .act.main { background: var(--color-accent); border-color: var(--color-accent); color: white }
.board .act:disabled, .board .act:has(input:disabled) { opacity: .45; cursor: default }
.board .act input[type=file] { position: absolute; inset: 0; opacity: 0; cursor: inherit; font-size: 0; width: 100% }
.board .act:focus-within, .board .act[aria-pressed=true] { outline: 2px solid var(--color-accent); outline-offset: 2px }
.board select { font: inherit; font-size: .9rem; padding: .3rem 1.8rem .3rem .5rem; border-radius: 6px;
  border: 1px solid var(--border-color-primary); background-color: var(--background-fill-primary); color: inherit }
.board .said { min-height: 1.5em; margin: .5rem 0; font-size: .9rem }
.board .said.bad { color: #b3261e } .dark .board .said.bad { color: #ff8a80 }
.board .desk { display: grid; grid-template-columns: minmax(0, 1fr) 17rem; gap: 1.2rem; align-items: start }
@media (max-width: 48rem) { .board .desk { grid-template-columns: minmax(0, 1fr) } }
.board .stage { min-height: 18rem; display: flex; align-items: center; justify-content: center; border-radius: 6px;
  border: 1px dashed var(--border-color-primary); background: var(--background-fill-secondary) }
.board .stage.full { border-style: solid } .board .stage.over { border-color: var(--color-accent) }
.board .empty { text-align: center; opacity: .8; line-height: 1.8; margin: 2rem }
.board .frame { position: relative; line-height: 0; cursor: crosshair }
.board .frame[hidden] { display: none }
.board .picture { max-width: 100%; max-height: 72vh; min-width: min(100%, 24rem); margin: 0; user-select: none }
.board .frame.busy { cursor: progress } .board .frame.busy .picture { opacity: .85 }
.board .mark { position: absolute; width: 15px; height: 15px; margin: -7.5px 0 0 -7.5px; padding: 0; border-radius: 50%;
  border: 2px solid white; box-shadow: 0 0 0 1.5px #222; cursor: pointer }
.board .mark.chosen { width: 21px; height: 21px; margin: -10.5px 0 0 -10.5px }
.board .cross { position: absolute; width: 23px; height: 23px; margin: -11.5px 0 0 -11.5px; pointer-events: none;
  border: 2px solid white; outline: 1.5px solid #222; border-radius: 50%; outline-offset: 0 }
.board .cross::after { content: ""; position: absolute; inset: 7px; border-radius: 50%; background: #222;
  box-shadow: 0 0 0 1px white }
.board .side h2 { font-size: 1rem; font-weight: 600; margin: 0 0 .3rem }
.board .side h2:not(:first-child) { margin-top: 1.2rem }
.board .side h3 { font-size: .85rem; font-weight: 500; margin: .6rem 0 .3rem; opacity: .8 }
.board .side p { margin: 0 0 .4rem; font-size: .9rem }
.board .none, .board .count { opacity: .75; font-weight: 400 }
.board .offered { display: grid; grid-template-columns: repeat(9, 1fr); gap: 3px }
.board .used { display: flex; flex-wrap: wrap; gap: 3px }
.board .swatch { height: 1.55rem; min-width: 1.55rem; padding: 0; cursor: pointer; border-radius: 3px;
  border: 1px solid rgb(128 128 128 / .5) }
.board .any { display: flex; align-items: center; gap: .6rem; margin-top: .6rem; font-size: .9rem }
.board .any[hidden] { display: none }
.board .any input { width: 3rem; height: 1.7rem; padding: 0; border: 1px solid var(--border-color-primary) }
.board table { width: 100%; margin-top: .6rem; font-size: .85rem; border-collapse: collapse;
  font-variant-numeric: tabular-nums }
.board table[hidden] { display: none }
.board th { text-align: left; font-weight: 500; opacity: .8; padding: .1rem .2rem }
.board td { padding: .15rem .2rem; border-top: 1px solid var(--border-color-primary) }
.board tr.chosen td { background: var(--background-fill-secondary) }
.board td .chip { display: inline-block; width: 2.6rem; height: 1.1rem; vertical-align: middle; border-radius: 3px;
  border: 1px solid rgb(128 128 128 / .5) }
.board td button { font: inherit; background: none; border: 0; padding: .1rem .2rem; cursor: pointer; color: inherit;
  text-decoration: underline }
"""

SCRIPT = r"""
const $ = (name) => element.querySelector(name);
const frame = $('.frame'), picture = $('.picture'), cross = $('.cross'), stage = $('.stage');
const pointer = {x: 0.5, y: 0.5};
let before = '', after = '', original = false, waiting = 0, last = -1;

function say(text, bad) {
  $('.said').textContent = text;
  $('.said').classList.toggle('bad', Boolean(bad));
}
function busy(on) {
  clearTimeout(waiting);
  frame.classList.toggle('busy', on);
  frame.setAttribute('aria-busy', on);
  if (on) waiting = setTimeout(() => busy(false), 60000);
}
function act(what) { busy(true); trigger('act', what); }

async function give(file, what) {
  if (!file) return;
  const most = props.value.megabytes;
  if (file.size > most * 1e6) {
    say(file.name + ': is larger than the ' + most + ' MB taken here; give a smaller one', true);
    return;
  }
  say('Reading ' + file.name + ' ...');
  const form = new FormData();
  form.append('files', file);
  try {
    const answer = await fetch('gradio_api/upload', {method: 'POST', body: form});
    if (!answer.ok) { say(file.name + ': ' + await answer.text(), true); return; }
    act({act: what, path: (await answer.json())[0]});
  } catch (error) { say('The page does not answer; is it still running in the terminal?', true); }
}

function swatch(colour, label) {
  if (!colour) return document.createElement('span');
  const one = document.createElement('button');
  one.type = 'button'; one.className = 'swatch'; one.style.background = colour; one.title = colour;
  one.setAttribute('aria-label', label + ' ' + colour);
  one.dataset.colour = colour;
  one.onclick = () => act({act: 'colour', colour: colour});
  return one;
}
function place(node, x, y, size) {
  node.style.left = (x + 0.5) / size[0] * 100 + '%';
  node.style.top = (y + 0.5) / size[1] * 100 + '%';
}
function row(hint, i, chosen) {
  const line = document.createElement('tr');
  line.classList.toggle('chosen', chosen);
  for (const colour of [hint.colour, hint.got]) {
    const chip = document.createElement('span');
    chip.className = 'chip'; chip.style.background = colour; chip.title = colour;
    line.insertCell().append(chip);
  }
  line.insertCell().textContent = hint.x;
  line.insertCell().textContent = hint.y;
  const away = document.createElement('button');
  away.type = 'button'; away.textContent = 'Remove'; away.className = 'away';
  away.setAttribute('aria-label', 'Remove hint ' + (i + 1));
  away.onclick = () => act({act: 'remove', index: i});
  line.insertCell().append(away);
  return line;
}
function mark(hint, i, size, chosen) {
  const one = document.createElement('button');
  one.type = 'button'; one.className = 'mark' + (chosen ? ' chosen' : ''); one.style.background = hint.colour;
  one.setAttribute('aria-label', 'Hint ' + (i + 1) + ', colour ' + hint.colour);
  place(one, hint.x, hint.y, size);
  one.onclick = (event) => { event.stopPropagation(); act({act: 'point', x: hint.x, y: hint.y}); };
  return one;
}
function fetched(file) {
  const link = document.createElement('a');
  link.href = 'gradio_api/file=' + file.path.split('/').map(encodeURIComponent).join('/');
  link.download = file.name;
  link.click();
}
function draw() {
  const v = props.value;
  if (v.turn === last) return;
  last = stage.dataset.turn = v.turn;
  busy(false);
  say(v.said, v.bad);
  if (v.before) { before = v.before; original = false; pointer.x = pointer.y = 0.5; }
  if (v.after) after = v.after;
  if (v.kind) $('.kind').value = v.kind;
  const open = Boolean(v.size);
  stage.classList.toggle('full', open);
  $('.empty').hidden = open; frame.hidden = !open;
  $('.takes').textContent = v.takes;
  picture.src = original ? before : after;
  $('.compare').setAttribute('aria-pressed', original);
  for (const name of ['.compare', '.save', '.load']) $(name).disabled = !open;
  $('.undo').disabled = !v.undo;
  for (const name of ['.clear', '.savehints']) $(name).disabled = !v.hints.length;
  const p = v.point;
  cross.hidden = !p || p.hint !== null;
  if (p) place(cross, p.x, p.y, v.size);
  $('.where').textContent = !open ? 'Open a photograph first.' : !p ? 'Click a point of the photograph.'
    : 'x ' + p.x + ', y ' + p.y + (p.hint === null ? '' : ' (hint ' + (p.hint + 1) + ')') + ': choose its colour.';
  $('.offered').replaceChildren(...v.offered.map((c) => swatch(c, 'Colour')));
  $('.any').hidden = !p;
  if (p && p.colour) $('.free').value = p.colour;
  $('.usedbox').hidden = !p || !v.used.length;
  $('.used').replaceChildren(...v.used.map((c) => swatch(c, 'Used colour')));
  $('.count').textContent = v.hints.length ? '(' + v.hints.length + ')' : '';
  $('.none').hidden = v.hints.length > 0;
  $('table').hidden = !v.hints.length;
  const chosen = (i) => Boolean(p) && p.hint === i;
  $('tbody').replaceChildren(...v.hints.map((h, i) => row(h, i, chosen(i))));
  $('.marks').replaceChildren(...v.hints.map((h, i) => mark(h, i, v.size, chosen(i))));
  if (v.fetch) fetched(v.fetch);
}

function choose(fx, fy) {
  const [w, h] = props.value.size;
  const at = (f, n) => Math.min(n - 1, Math.max(0, Math.floor(f * n)));
  pointer.x = fx; pointer.y = fy;
  act({act: 'point', x: at(fx, w), y: at(fy, h)});
}
frame.addEventListener('click', (event) => {
  const box = picture.getBoundingClientRect();
  choose((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
});
frame.addEventListener('keydown', (event) => {
  const [w, h] = props.value.size, step = event.shiftKey ? 1 : Math.max(1, Math.round(Math.max(w, h) / 50));
  const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  if (event.target !== frame) return;
  if (moves[event.key]) {
    pointer.x = Math.min(1, Math.max(0, pointer.x + moves[event.key][0] * step / w));
    pointer.y = Math.min(1, Math.max(0, pointer.y + moves[event.key][1] * step / h));
    cross.hidden = false;
    cross.style.left = pointer.x * 100 + '%'; cross.style.top = pointer.y * 100 + '%';
  } else if (event.key === 'Enter' || event.key === ' ') {
    choose(pointer.x, pointer.y);
  } else if (event.key === 'Delete' && props.value.point && props.value.point.hint !== null) {
    act({act: 'remove', index: props.value.point.hint});
  } else return;
  event.preventDefault();
});
element.addEventListener('keydown', (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === 'z' && props.value.undo) {
    event.preventDefault();
    act({act: 'undo'});
  }
});
$('.undo').onclick = () => act({act: 'undo'});
$('.clear').onclick = () => act({act: 'clear'});
$('.savehints').onclick = () => act({act: 'savehints'});
$('.save').onclick = () => {
  say('Computing the picture at its full size ...');
  act({act: 'save', kind: $('.kind').value});
};
$('.compare').onclick = () => {
  original = !original;
  picture.src = original ? before : after;
  $('.compare').setAttribute('aria-pressed', original);
};
$('.free').onchange = (event) => act({act: 'colour', colour: event.target.value});
for (const [name, what] of [['.open', 'open'], ['.load', 'load']]) {
  $(name).onchange = (event) => { give(event.target.files[0], what); event.target.value = ''; };
}
stage.addEventListener('dragover', (event) => { event.preventDefault(); stage.classList.add('over'); });
stage.addEventListener('dragleave', () => stage.classList.remove('over'));
stage.addEventListener('drop', (event) => {
  event.preventDefault();
  stage.classList.remove('over');
  give(event.dataTransfer.files[0], 'open');
});
watch('value', draw);
draw();
"""
