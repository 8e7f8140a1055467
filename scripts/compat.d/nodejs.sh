#!/bin/bash
# title: node: worker threads, net, fs, child processes, crypto, streams, wasm
# packages: nodejs
set -euo pipefail

cat >main.js <<'JS'
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
const { once } = require('events');
const assert = require('assert');
const fs = require('fs');
const net = require('net');
const http = require('http');
const dgram = require('dgram');
const path = require('path');
const zlib = require('zlib');
const crypto = require('crypto');
const cp = require('child_process');
const { pipeline } = require('stream/promises');

if (!isMainThread) {
  const cells = new Int32Array(workerData);
  for (let i = 0; i < 10000; i++) Atomics.add(cells, 0, 1);
  parentPort.postMessage('done');
  return;
}
const tests = {
  async 'worker threads share memory'() {
    const memory = new SharedArrayBuffer(4);
    await Promise.all(Array.from({ length: 8 }, () => once(new Worker(__filename, { workerData: memory }), 'exit')));
    assert.strictEqual(new Int32Array(memory)[0], 80000);
  },
  async 'a TCP server and twenty clients'() {
    const server = net.createServer((c) => c.pipe(c)).listen(0, '127.0.0.1');
    await once(server, 'listening');
    await Promise.all(Array.from({ length: 20 }, async (_, i) => {
      const c = net.connect(server.address().port, '127.0.0.1');
      c.end(`hello ${i}`);
      let got = '';
      for await (const part of c) got += part;
      assert.strictEqual(got, `hello ${i}`);
    }));
    server.close();
  },
  async 'HTTP over a Unix socket'() {
    const server = http.createServer((q, r) => r.end(`you asked for ${q.url}`)).listen('/tmp/http.sock');
    await once(server, 'listening');
    const [answer] = await once(http.get({ socketPath: '/tmp/http.sock', path: '/x' }), 'response');
    let got = '';
    for await (const part of answer) got += part;
    assert.strictEqual(got, 'you asked for /x');
    server.close();
  },
  async 'TCP over IPv6'() {
    const server = net.createServer((c) => c.end('six')).listen(0, '::1');
    await once(server, 'listening');
    const [part] = await once(net.connect(server.address().port, '::1'), 'data');
    assert.strictEqual(String(part), 'six');
    server.close();
  },
  async 'UDP'() {
    const one = dgram.createSocket('udp4').bind(0, '127.0.0.1');
    await once(one, 'listening');
    const two = dgram.createSocket('udp4');
    two.send('ping', one.address().port, '127.0.0.1');
    const [message] = await once(one, 'message');
    assert.strictEqual(String(message), 'ping');
    one.close(); two.close();
  },
  async 'files: write, rename, link, symlink, truncate, utimes, remove'() {
    const d = fs.mkdtempSync('/tmp/files-');
    fs.writeFileSync(`${d}/a`, 'x'.repeat(100000));
    fs.renameSync(`${d}/a`, `${d}/b`);
    fs.linkSync(`${d}/b`, `${d}/c`);
    fs.symlinkSync('b', `${d}/l`);
    fs.truncateSync(`${d}/l`, 10);
    fs.utimesSync(`${d}/b`, 1, 2);
    fs.chmodSync(`${d}/b`, 0o640);
    const s = fs.statSync(`${d}/c`);
    assert.deepStrictEqual([s.size, s.mtimeMs, s.mode & 0o777, s.nlink], [10, 2000, 0o640, 2]);
    fs.cpSync(d, `${d}-copy`, { recursive: true });
    fs.rmSync(d, { recursive: true });
    assert.deepStrictEqual(fs.readdirSync(`${d}-copy`).sort(), ['b', 'c', 'l']);
  },
  async 'a watched directory'() {
    const d = fs.mkdtempSync('/tmp/watch-');
    const watcher = fs.watch(d);
    const seen = once(watcher, 'change');
    fs.writeFileSync(path.join(d, 'new'), '');
    assert.strictEqual((await seen)[1], 'new');
    watcher.close();
  },
  async 'a thousand files at once'() {
    const d = fs.mkdtempSync('/tmp/many-');
    await Promise.all(Array.from({ length: 1000 }, (_, i) => fs.promises.writeFile(`${d}/${i}`, String(i))));
    assert.strictEqual((await fs.promises.readdir(d)).length, 1000);
  },
  async 'spawn with pipes'() {
    const child = cp.spawn('cat');
    child.stdin.end('through a pipe');
    let got = '';
    for await (const part of child.stdout) got += part;
    assert.strictEqual(got, 'through a pipe');
  },
  async 'fork with messages'() {
    fs.writeFileSync('/tmp/child.js', 'process.on("message", (m) => { process.send(m + 1); process.disconnect(); })');
    const child = cp.fork('/tmp/child.js');
    child.send(41);
    assert.strictEqual((await once(child, 'message'))[0], 42);
  },
  async 'a socket is handed to a child'() {
    fs.writeFileSync('/tmp/taker.js', 'process.on("message", (m, s) => { s.end("from the child"); process.disconnect(); })');
    const child = cp.fork('/tmp/taker.js');
    const server = net.createServer({ pauseOnConnect: true }, (c) => child.send('take', c)).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const [part] = await once(net.connect(server.address().port, '127.0.0.1'), 'data');
    assert.strictEqual(String(part), 'from the child');
    server.close();
  },
  async 'a signal ends a child'() {
    const child = cp.spawn('sleep', ['100']);
    child.kill('SIGTERM');
    assert.strictEqual((await once(child, 'exit'))[1], 'SIGTERM');
  },
  async 'exec in a shell, with a time limit'() {
    const child = cp.exec('sleep 100', { timeout: 50 });
    assert.strictEqual((await once(child, 'exit'))[1], 'SIGTERM');
  },
  async 'key pairs, scrypt, random'() {
    const { publicKey, privateKey } = crypto.generateKeyPairSync('ed25519');
    assert(crypto.verify(null, Buffer.from('x'), publicKey, crypto.sign(null, Buffer.from('x'), privateKey)));
    assert.strictEqual(crypto.scryptSync('a', 'b', 16).toString('hex').length, 32);
    assert.strictEqual(crypto.randomBytes(64).length, 64);
  },
  async 'a stream through gzip and back'() {
    fs.writeFileSync('/tmp/plain', crypto.createHash('sha512').update('x').digest('hex').repeat(5000));
    await pipeline(fs.createReadStream('/tmp/plain'), zlib.createGzip(), fs.createWriteStream('/tmp/plain.gz'));
    await pipeline(fs.createReadStream('/tmp/plain.gz'), zlib.createGunzip(), fs.createWriteStream('/tmp/back'));
    assert(fs.readFileSync('/tmp/plain').equals(fs.readFileSync('/tmp/back')));
  },
  async 'WebAssembly is compiled and runs'() {
    const code = Buffer.from('0061736d0100000001070160027f7f017f030201000707010361646400000a09010700200020016a0b', 'hex');
    assert.strictEqual((await WebAssembly.instantiate(code)).instance.exports.add(40, 2), 42);
  },
  async 'os facts'() {
    const os = require('os');
    assert(os.cpus().length > 0 && os.totalmem() > 0 && os.userInfo().username === 'nixbld');
    console.log(`${os.cpus().length} processors`);
  },
};
(async () => {
  for (const [name, test] of Object.entries(tests)) {
    try { await test(); console.log(`ok ${name}`); } catch (why) { console.log(`failed ${name}`); console.error(name, why); }
  }
})();
JS
node main.js
