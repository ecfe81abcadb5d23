// A zip file of texts, without compression (PKWARE's APPNOTE.TXT 6.3.3, sections 4.3.7, 4.3.12 and 4.3.16).

const UTF8 = 1 << 11; // of the flags: names are UTF-8
const DATE = (1 << 5) | 1; // the first of January 1980: the files have no time

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let rest = byte;
  for (let bit = 0; bit < 8; bit += 1) rest = rest & 1 ? (rest >>> 1) ^ 0xedb88320 : rest >>> 1;
  return rest;
});

function crc32(bytes) {
  let rest = 0xffffffff;
  for (const byte of bytes) rest = TABLE[(rest ^ byte) & 0xff] ^ (rest >>> 8);
  return (rest ^ 0xffffffff) >>> 0;
}

// A record: pairs of a value and its length in bytes, little-endian.
function record(...fields) {
  const bytes = new Uint8Array(fields.reduce((total, [, length]) => total + length, 0));
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const [value, length] of fields) {
    if (length === 4) view.setUint32(at, value, true);
    else view.setUint16(at, value, true);
    at += length;
  }
  return bytes;
}

// Files are pairs of a name and a text.
export function zip(files) {
  const encoder = new TextEncoder();
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const [name, text] of files) {
    const [path, content] = [encoder.encode(name), encoder.encode(text)];
    // Flags, no compression, time, date, checksum, both sizes, and the lengths of name and extra field.
    const common = [[UTF8, 2], [0, 2], [0, 2], [DATE, 2], [crc32(content), 4], [content.length, 4], [content.length, 4], [path.length, 2], [0, 2]];
    const local = record([0x04034b50, 4], [20, 2], ...common);
    parts.push(local, path, content);
    // Lengths of comment, disk and attributes are zero; then where the file begins.
    directory.push(record([0x02014b50, 4], [20, 2], [20, 2], ...common, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]), path);
    offset += local.length + path.length + content.length;
  }
  const size = directory.reduce((total, { length }) => total + length, 0);
  const end = record([0x06054b50, 4], [0, 2], [0, 2], [files.length, 2], [files.length, 2], [size, 4], [offset, 4], [0, 2]);
  return new Blob([...parts, ...directory, end]);
}
