/* Framing of the link. See edgetqs_link.h. */
#include "edgetqs_link.h"

#include "board.h"

uint16_t link_crc(const uint8_t *bytes, size_t count)
{
    uint32_t crc = 0xFFFFu;
    while (count > 0u) {
        crc ^= (uint32_t)*bytes << 8;
        for (unsigned bit = 0; bit < 8u; ++bit) {
            crc = (crc & 0x8000u) != 0u ? (crc << 1) ^ 0x1021u : crc << 1;
        }
        ++bytes;
        --count;
    }
    return (uint16_t)(crc & 0xFFFFu);
}

static void start(link_reader *reader)
{
    reader->left = 0;
    reader->zero = 0;
    reader->seen = 0;
    reader->over = 0;
}

void link_reader_init(link_reader *reader, uint8_t *payload, uint16_t size)
{
    reader->payload = payload;
    reader->size = size;
    reader->count = 0;
    start(reader);
}

static void put(link_reader *reader, uint8_t byte)
{
    if (reader->count == reader->size) {
        reader->over = 1;
        return;
    }
    reader->payload[reader->count] = byte;
    ++reader->count;
}

static link_event finish(link_reader *reader)
{
    const link_reader frame = *reader;
    start(reader);
    if (frame.seen == 0u) {
        return LINK_MORE;
    }
    if (frame.over != 0u) {
        return LINK_TOO_LONG;
    }
    if (frame.left != 0u || frame.count < LINK_HEAD + LINK_CRC) {
        return LINK_DAMAGED;
    }
    reader->count = (uint16_t)(frame.count - LINK_CRC);
    const uint8_t *stored = &frame.payload[reader->count];
    if (link_crc(frame.payload, reader->count) != (stored[0] | (uint32_t)stored[1] << 8)) {
        return LINK_DAMAGED;
    }
    return LINK_FRAME;
}

link_event link_take(link_reader *reader, uint8_t byte)
{
    if (byte == 0u) {
        return finish(reader);
    }
    if (reader->seen == 0u) {
        reader->seen = 1;
        reader->count = 0;
    }
    if (reader->left > 0u) {
        --reader->left;
        put(reader, byte);
        return LINK_MORE;
    }
    if (reader->zero != 0u) {
        put(reader, 0);
    }
    reader->left = (uint8_t)(byte - 1u);
    reader->zero = byte != 0xFFu;
    return LINK_MORE;
}

void link_send(uint8_t *payload, uint16_t count)
{
    const uint16_t crc = link_crc(payload, count);
    payload[count] = (uint8_t)(crc & 0xFFu);
    payload[count + 1u] = (uint8_t)(crc >> 8);
    const unsigned end = count + LINK_CRC;
    unsigned next = 0;
    board_putc(0);
    while (next <= end) { /* one block a turn: bytes up to a zero, the end or the 254th */
        unsigned stop = next;
        while (stop < end && payload[stop] != 0u && stop - next < 254u) {
            ++stop;
        }
        const unsigned full = stop - next == 254u;
        board_putc((char)(stop - next + 1u));
        while (next < stop) {
            board_putc((char)payload[next]);
            ++next;
        }
        if (full != 0u) {
            if (next == end) {
                break;
            }
        } else {
            ++next; /* the zero, or past the end */
        }
    }
    board_putc(0);
}
